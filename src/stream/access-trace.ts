/**
 * Traces of what guests read, to hydrate in that order another time: which regions, when for the first time, and whether
 * they had to be waited for. Bounded: each region is in it once, and there are no more than `REGIONS_MAX`.
 *
 * ```
 * {"blockferryTrace":1,"regionBytes":65536,"sizeBytes":…}     the first line
 * [ms,region,count,"fault"|"read"]                            a line for each access: milliseconds since the beginning
 * ```
 */
import type { Clock } from "../env/clock.ts";
import type { ByteRange } from "./order.ts";

const VERSION = 1;
const REGION_BYTES = 64 * 1024;
const REGION_BYTES_LIMITS = { min: 512, max: 2 ** 30 };
/** 64 GiB of a disk. */
const REGIONS_MAX = 1_000_000;

export class TraceError extends Error {
  override readonly name = "TraceError";
}

export class TraceRecorder {
  readonly #clock: Pick<Clock, "nowMs">;
  readonly #startMs: number;
  readonly #write: (text: string) => void;
  readonly #seen = new Set<number>();

  /** `write` takes whole lines. */
  constructor(clock: Pick<Clock, "nowMs">, sizeBytes: number, write: (text: string) => void) {
    this.#clock = clock;
    this.#startMs = clock.nowMs();
    this.#write = write;
    write(`${JSON.stringify({ blockferryTrace: VERSION, regionBytes: REGION_BYTES, sizeBytes })}\n`);
  }

  get full(): boolean {
    return this.#seen.size >= REGIONS_MAX;
  }

  note(offset: number, length: number, fault: boolean): void {
    const last = Math.floor((offset + length - 1) / REGION_BYTES);
    for (let region = Math.floor(offset / REGION_BYTES); region <= last; region++) {
      if (this.#seen.has(region)) continue;
      const first = region;
      while (region <= last && !this.full && !this.#seen.has(region)) this.#seen.add(region++);
      if (region === first) return;
      const ms = Math.round(this.#clock.nowMs() - this.#startMs);
      this.#write(`${JSON.stringify([ms, first, region - first, fault ? "fault" : "read"])}\n`);
    }
  }
}

/** The ranges of a trace, in its order. Throws `TraceError` when it is none, or one of a disk of another size. */
export function parseTrace(text: string, sizeBytes: number): ByteRange[] {
  const [head = "", ...lines] = text.split("\n");
  const header = parsed(head, 1) as { blockferryTrace?: unknown; regionBytes?: unknown; sizeBytes?: unknown } | null;
  if (header?.blockferryTrace !== VERSION) throw new TraceError("this is no trace of blockferry");
  const { regionBytes } = header;
  const { min, max } = REGION_BYTES_LIMITS;
  if (!(Number.isSafeInteger(regionBytes) && Number(regionBytes) >= min && Number(regionBytes) <= max)) {
    throw new TraceError("its regions have a size that cannot be");
  }
  if (header.sizeBytes !== sizeBytes) {
    throw new TraceError(`it was recorded with a disk of ${String(header.sizeBytes)} bytes; this one has ${sizeBytes}`);
  }
  const ranges: ByteRange[] = [];
  for (const [index, line] of lines.entries()) {
    if (line === "") continue;
    // A recording that was killed ends in the middle of a line.
    if (index === lines.length - 1) break;
    ranges.push(rangeOf(parsed(line, index + 2), index + 2, Number(regionBytes)));
    if (ranges.length > REGIONS_MAX) throw new TraceError(`it has more than ${REGIONS_MAX} lines`);
  }
  return ranges;
}

function rangeOf(entry: unknown, line: number, regionBytes: number): ByteRange {
  const [, region, count] = Array.isArray(entry) ? (entry as unknown[]) : [];
  const good = isCount(region) && isCount(count) && (region + count) * regionBytes <= Number.MAX_SAFE_INTEGER;
  if (!good) throw new TraceError(`line ${line} is no access`);
  return { offset: region * regionBytes, length: count * regionBytes };
}

function isCount(value: unknown): value is number {
  return typeof value === "number" && Number.isSafeInteger(value) && value >= 0;
}

function parsed(text: string, line: number): unknown {
  try {
    return JSON.parse(text);
  } catch (cause) {
    throw new TraceError(`line ${line} is not JSON`, { cause });
  }
}
