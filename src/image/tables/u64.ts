/** 64-bit offsets as numbers. What a number cannot hold becomes `Infinity`, so that one range check refuses it. */

const HIGH = 2 ** 32;
const HIGH_MAX = 2 ** 21;

/** Both halves of a 64-bit word as a number. */
export function u64FromHalves(low: number, high: number): number {
  return high < HIGH_MAX ? high * HIGH + low : Infinity;
}

export function readU64LE(view: DataView, at: number): number {
  return u64FromHalves(view.getUint32(at, true), view.getUint32(at + 4, true));
}

/** `value` must be a safe integer. */
export function writeU64LE(view: DataView, at: number, value: number): void {
  view.setUint32(at, value % HIGH, true);
  view.setUint32(at + 4, Math.floor(value / HIGH), true);
}
