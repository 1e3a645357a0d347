/** 64-bit big-endian offsets as numbers, as `u64.ts`. */
import { u64FromHalves } from "./u64.ts";

const HIGH = 2 ** 32;

export function readU64BE(view: DataView, at: number): number {
  return u64FromHalves(view.getUint32(at + 4), view.getUint32(at));
}

/** `value` must be a safe integer. */
export function writeU64BE(view: DataView, at: number, value: number): void {
  view.setUint32(at, Math.floor(value / HIGH));
  view.setUint32(at + 4, value % HIGH);
}
