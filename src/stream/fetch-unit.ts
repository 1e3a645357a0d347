/** How long one background request should be: short where it takes long, long where requests would be many. */
export const UNIT_BYTES_MIN = 16 * 1024;
export const UNIT_BYTES_MAX = 1024 * 1024;
export const UNIT_BYTES_START = 64 * 1024;
/** A unit takes the bottleneck about so long. */
const UNIT_MS = 1.3;
/** From this rate on (1 Gb/s) in proportion longer: a processor's time per request counts there, so 1 MiB at 3 Gb/s. */
const FAST_BYTES_PER_MS = 125_000;
/** As many as a session has slots for, with some to spare for others. */
const UNITS_MAX = 48;
/** By which the rate must be beyond the limit before units become longer or shorter. */
const SLACK = 0.15;

export interface UnitLimits {
  /** What the path delivers. */
  readonly bytesPerMs: number;
  readonly windowBytes: number;
  readonly mayShrink: boolean;
}

/** The next unit, a power of two, after one of `unitBytes`. */
export function fitUnit(unitBytes: number, { bytesPerMs, windowBytes, mayShrink }: UnitLimits): number {
  const fitting = bytesPerMs * UNIT_MS * Math.max(1, bytesPerMs / FAST_BYTES_PER_MS);
  const fewest = windowBytes / UNITS_MAX;
  let unit = unitBytes;
  while (unit < UNIT_BYTES_MAX && (fitting >= 2 * unit * (1 + SLACK) || fewest > unit)) unit *= 2;
  const shorter = mayShrink && unit === unitBytes && unit > UNIT_BYTES_MIN;
  return shorter && fitting < unit * (1 - SLACK) && fewest < unit / 2 ? unit / 2 : unit;
}
