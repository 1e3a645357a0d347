/**
 * Which parts of a file are data and which are holes: SEEK_DATA and SEEK_HOLE, and a cache of their answers, because
 * asking takes two trips through the thread pool, and on tmpfs a walk over all that lies before the next hole.
 *
 * Saying "data" is always right, so all care is about holes: **nothing that is being written, or was, may be left in
 * the cache as a hole.** Whoever changes a range calls `invalidate` before it starts *and* after it ends. An answer
 * that the kernel gave before the change, and that arrives after it, was marked by the second call while it was under
 * way (`Query.taint`), and is not kept; one that arrives earlier is removed by that call.
 * (Holes that another process fills are not noticed. The image lock keeps others out.)
 */
import type { FileExtent } from "../env/files.ts";
import { EINVAL, ENXIO, errnoError, isUnsupported } from "./file-error.ts";
import type { NativeCalls } from "./native-calls.ts";

/** More than this many runs, and the cache starts anew: a walk over the file uses each only for a short time. */
export const CACHED_RUNS_MAX = 4096;

/** Sorted, disjoint runs of known kind. */
export class ExtentCache {
  // Parallel arrays: a run is [#starts[i], #ends[i]) of kind #kinds[i].
  #starts: number[] = [];
  #ends: number[] = [];
  #holes: boolean[] = [];

  get size(): number {
    return this.#starts.length;
  }

  lookup(offset: number): FileExtent | undefined {
    const i = this.#firstEndingAfter(offset);
    const start = this.#starts[i];
    if (start === undefined || start > offset) return undefined;
    return { kind: this.#holes[i] ? "hole" : "data", end: this.#ends[i] as number };
  }

  /** Remembers a run, over whatever was known of its range before. */
  add(start: number, end: number, kind: FileExtent["kind"]): void {
    this.invalidate(start, end);
    if (this.size >= CACHED_RUNS_MAX) this.clear();
    const hole = kind === "hole";
    let at = this.#firstEndingAfter(start);
    let [from, to, replaced] = [start, end, 0];
    if (this.#ends[at - 1] === start && this.#holes[at - 1] === hole) {
      at -= 1;
      from = this.#starts[at] as number;
      replaced += 1;
    }
    if (this.#starts[at + replaced] === end && this.#holes[at + replaced] === hole) {
      to = this.#ends[at + replaced] as number;
      replaced += 1;
    }
    this.#starts.splice(at, replaced, from);
    this.#ends.splice(at, replaced, to);
    this.#holes.splice(at, replaced, hole);
  }

  /** Forgets the range, and keeps what is known on both sides of it. */
  invalidate(start: number, end: number): void {
    if (this.#starts.length === 0) return;
    const first = this.#firstEndingAfter(start);
    let last = first;
    while (last < this.#starts.length && (this.#starts[last] as number) < end) last += 1;
    if (last === first) return;
    const headStart = this.#starts[first] as number;
    const tailEnd = this.#ends[last - 1] as number;
    const runs: [number, number, boolean][] = [];
    if (headStart < start) runs.push([headStart, start, this.#holes[first] as boolean]);
    if (tailEnd > end) runs.push([end, tailEnd, this.#holes[last - 1] as boolean]);
    this.#starts.splice(first, last - first, ...runs.map((run) => run[0]));
    this.#ends.splice(first, last - first, ...runs.map((run) => run[1]));
    this.#holes.splice(first, last - first, ...runs.map((run) => run[2]));
  }

  clear(): void {
    this.#starts = [];
    this.#ends = [];
    this.#holes = [];
  }

  /** The first run whose end lies after `offset`: it contains `offset`, or comes next. */
  #firstEndingAfter(offset: number): number {
    let [low, high] = [0, this.#ends.length];
    while (low < high) {
      const middle = (low + high) >>> 1;
      if ((this.#ends[middle] as number) > offset) high = middle;
      else low = middle + 1;
    }
    return low;
  }
}

/** One question to the kernel, and the range that was changed while it was on its way. */
interface Query {
  taintStart: number;
  taintEnd: number;
}

export type SeekCalls = Pick<NativeCalls, "seekData" | "seekHole" | "seekEnd">;

export class ExtentFinder {
  readonly #calls: SeekCalls;
  readonly #fd: number;
  readonly #path: string;
  readonly #cache = new ExtentCache();
  readonly #queries = new Set<Query>();

  constructor(calls: SeekCalls, fd: number, path: string) {
    this.#calls = calls;
    this.#fd = fd;
    this.#path = path;
  }

  /** To be called before a change of the range starts, and again after it ended, however it ended. */
  invalidate(start: number, end: number): void {
    this.#cache.invalidate(start, end);
    if (this.#queries.size === 0) return;
    for (const query of this.#queries) {
      query.taintStart = Math.min(query.taintStart, start);
      query.taintEnd = Math.max(query.taintEnd, end);
    }
  }

  /** Undefined when this file system cannot tell. */
  async find(offset: number): Promise<FileExtent | undefined> {
    const known = this.#cache.lookup(offset);
    if (known) return known;
    const query: Query = { taintStart: Number.POSITIVE_INFINITY, taintEnd: 0 };
    this.#queries.add(query);
    try {
      const extent = await this.#ask(offset);
      if (!extent) return undefined;
      // Only the part before the first change is kept; usually that is all of it.
      const end = query.taintEnd > offset ? Math.min(extent.end, query.taintStart) : extent.end;
      if (end > offset) this.#cache.add(offset, end, extent.kind);
      return extent;
    } finally {
      this.#queries.delete(query);
    }
  }

  async #ask(offset: number): Promise<FileExtent | undefined> {
    const data = await this.#calls.seekData(this.#fd, offset);
    if (data > offset) return { kind: "hole", end: data };
    if (data === -ENXIO) return this.#holeToEnd(offset);
    const hole = data < 0 ? data : await this.#calls.seekHole(this.#fd, offset);
    // `hole` is `offset` when the data was punched out between the two calls. Any answer is right then.
    if (hole >= 0) return { kind: "data", end: Math.max(hole, offset + 1) };
    if (hole === -EINVAL || isUnsupported(-hole)) return undefined;
    throw errnoError(`cannot tell data from holes at ${offset} in ${this.#path}`, -hole);
  }

  async #holeToEnd(offset: number): Promise<FileExtent> {
    const end = await this.#calls.seekEnd(this.#fd);
    if (end <= offset) throw errnoError(`offset ${offset} is past the end of ${this.#path}`, EINVAL);
    return { kind: "hole", end };
  }
}
