/**
 * Slices of tables, decoded, in bounded memory. A table may be a gigabyte, so that it is never held whole: a slice is the
 * unit of loading and forgetting. The slice that was not used for longest goes first.
 *
 * Invariants
 * - For each key there is at most one slice at a time, loaded once however many ask for it.
 * - Slices are never written back: whoever changes a table writes the file, then the slice, while it has it *pinned*; a
 *   pinned slice is not forgotten, so that nobody can load the table as it was before.
 * - The memory of a slice that was forgotten may be used for another one: `peek` gives it until the caller awaits something,
 *   `pin` until `unpin`.
 * - Pinned slices may exceed the limit, by what is in use at the same time.
 */

/** One slice, from the time it is asked for. */
interface Entry<T> {
  slice: T | undefined;
  loading: Promise<T> | undefined;
  pins: number;
}

export interface SliceCacheOptions<T> {
  readonly slicesMax: number;
  /** Reads and decodes the slice at `key`. `old` is one that was forgotten, and that nobody uses: its memory may be. */
  readonly load: (key: number, old: T | undefined) => Promise<T>;
  /** Keep what is forgotten for `load`: memory that comes and goes with every slice is given back late. Default: no. */
  readonly reuse?: boolean;
  /** Gives the memory of a slice back that was forgotten and that nobody uses, as an alternative to `reuse`. */
  readonly free?: (slice: T) => void;
}

/** Forgotten slices that are kept for use: as many as are loaded at the same time, as a rule. */
const OLD_MAX = 64;

export class SliceCache<T> {
  readonly #slicesMax: number;
  readonly #load: SliceCacheOptions<T>["load"];
  readonly #reuse: boolean;
  readonly #free: SliceCacheOptions<T>["free"];
  readonly #old: T[] = [];
  /** By when they were last used, the longest ago first. */
  readonly #entries = new Map<number, Entry<T>>();
  /** The last one that `peek` found: requests mostly stay in one slice. */
  #lastKey = -1;
  #last: T | undefined;

  constructor({ slicesMax, load, reuse = false, free }: SliceCacheOptions<T>) {
    this.#slicesMax = slicesMax;
    this.#load = load;
    this.#reuse = reuse;
    this.#free = free;
  }

  get size(): number {
    return this.#entries.size;
  }

  /** The slice, if it is here. Valid until the caller awaits something. */
  peek(key: number): T | undefined {
    if (key === this.#lastKey) return this.#last;
    const entry = this.#entries.get(key);
    if (entry?.slice === undefined) return undefined;
    this.#touch(key, entry);
    this.#lastKey = key;
    this.#last = entry.slice;
    return entry.slice;
  }

  /** Loads the slice if need be, and keeps it until `unpin`, once for each `pin` that succeeded. */
  async pin(key: number): Promise<T> {
    const entry = this.#entries.get(key) ?? { slice: undefined, loading: undefined, pins: 0 };
    entry.pins += 1;
    this.#touch(key, entry);
    if (entry.slice !== undefined) return entry.slice;
    entry.loading ??= this.#load(key, this.#old.pop());
    const { loading } = entry;
    try {
      entry.slice = await loading;
    } catch (error) {
      entry.pins -= 1;
      // Somebody may have begun to try again.
      if (entry.loading === loading) entry.loading = undefined;
      if (entry.pins === 0) this.#entries.delete(key);
      throw error;
    }
    entry.loading = undefined;
    return entry.slice;
  }

  unpin(key: number): void {
    const entry = this.#entries.get(key);
    if (entry === undefined) return;
    entry.pins -= 1;
    this.#shrink();
  }

  #touch(key: number, entry: Entry<T>): void {
    this.#entries.delete(key);
    this.#entries.set(key, entry);
  }

  #shrink(): void {
    if (this.#entries.size <= this.#slicesMax) return;
    for (const [key, entry] of this.#entries) {
      if (this.#entries.size <= this.#slicesMax) return;
      if (entry.pins > 0) continue;
      this.#entries.delete(key);
      if (key === this.#lastKey) this.#lastKey = -1;
      if (entry.slice !== undefined) this.#free?.(entry.slice);
      if (this.#reuse && entry.slice !== undefined && this.#old.length < OLD_MAX) this.#old.push(entry.slice);
    }
  }
}
