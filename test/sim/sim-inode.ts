/**
 * What lies under a path: sectors in the page cache, sectors on the medium, and between them the versions that a sync has
 * not made durable yet. Power loss decides sector by sector which version, or which mix of two, the medium ends up with.
 *
 * Invariants: a sector's bytes are never changed, only replaced, so that snapshots cost nothing. Absent from a map means a
 * hole, which reads as zeroes. `#pending` holds, for each sector, what it held since the last sync, oldest first.
 */
import type { LockMode } from "../../src/env/files.ts";
import type { Prng } from "../support/seed.ts";

export const SECTOR_BYTES = 512;
const ZERO_SECTOR = new Uint8Array(SECTOR_BYTES);
const TEAR_BYTES = 8;

/** `undefined`: a hole. */
type Sector = Uint8Array | undefined;

interface Version {
  readonly number: number;
  readonly sector: Sector;
}

interface SizeVersion {
  readonly number: number;
  readonly size: number;
}

/** What a sync that began at `upTo` covers. */
export interface SyncPoint {
  readonly upTo: number;
}

export class SimInode {
  readonly kind: "regular" | "block-device";
  /** Locks by the handle that holds them. */
  readonly holders = new Map<object, LockMode>();
  size = 0;
  readonly #live = new Map<number, Uint8Array>();
  readonly #durable = new Map<number, Uint8Array>();
  readonly #pending = new Map<number, Version[]>();
  #durableSize = 0;
  #pendingSizes: SizeVersion[] = [];
  #version = 0;

  constructor(kind: "regular" | "block-device" = "regular") {
    this.kind = kind;
  }

  get allocatedBytes(): number {
    return this.kind === "regular" ? this.#live.size * SECTOR_BYTES : 0;
  }

  /** Sectors that power loss may lose. */
  get pendingSectors(): number {
    return this.#pending.size;
  }

  /** Bytes read: fewer at the end of the file. */
  read(offset: number, into: Uint8Array): number {
    const length = Math.max(0, Math.min(into.length, this.size - offset));
    for (let done = 0; done < length; ) {
      const within = (offset + done) % SECTOR_BYTES;
      const count = Math.min(SECTOR_BYTES - within, length - done);
      const sector = this.#live.get((offset + done - within) / SECTOR_BYTES);
      if (sector === undefined) into.fill(0, done, done + count);
      else into.set(count === SECTOR_BYTES ? sector : sector.subarray(within, within + count), done);
      done += count;
    }
    return length;
  }

  write(offset: number, from: Uint8Array): void {
    for (let done = 0; done < from.length; ) {
      const within = (offset + done) % SECTOR_BYTES;
      const count = Math.min(SECTOR_BYTES - within, from.length - done);
      const index = (offset + done - within) / SECTOR_BYTES;
      const sector = new Uint8Array(SECTOR_BYTES);
      if (count < SECTOR_BYTES) sector.set(this.#live.get(index) ?? ZERO_SECTOR);
      sector.set(from.subarray(done, done + count), within);
      this.#put(index, sector);
      done += count;
    }
    if (offset + from.length > this.size) this.#resize(offset + from.length);
  }

  /** Zeroes the range; `hole`: whole sectors become holes. */
  zero(offset: number, length: number, hole: boolean): void {
    const end = Math.min(offset + length, this.size);
    for (let at = offset; at < end; ) {
      const within = at % SECTOR_BYTES;
      const count = Math.min(SECTOR_BYTES - within, end - at);
      const index = (at - within) / SECTOR_BYTES;
      const whole = within === 0 && (count === SECTOR_BYTES || at + count === this.size);
      const old = this.#live.get(index);
      if (whole) this.#put(index, hole ? undefined : ZERO_SECTOR);
      else if (old !== undefined) this.#put(index, old.slice().fill(0, within, within + count));
      at += count;
    }
  }

  /** What counts as clean is read from the medium again. */
  dropClean(offset: number, length: number): void {
    for (let index = offset / SECTOR_BYTES; index < (offset + length) / SECTOR_BYTES; index++) {
      if (this.#pending.has(index)) continue;
      const sector = this.#durable.get(index);
      if (sector === undefined) this.#live.delete(index);
      else this.#live.set(index, sector);
    }
  }

  truncate(size: number): void {
    if (size < this.size) {
      for (const index of this.#live.keys()) {
        if (index * SECTOR_BYTES >= size) this.#put(index, undefined);
      }
      this.zero(size, Math.min(SECTOR_BYTES, this.size - size), true);
    }
    this.#resize(size);
  }

  /** Where the run of data or hole ends that `offset` is in. */
  extentAt(offset: number): { kind: "data" | "hole"; end: number } {
    let index = Math.floor(offset / SECTOR_BYTES);
    if (this.#live.has(index)) {
      while (this.#live.has(index)) index++;
      return { kind: "data", end: Math.min(index * SECTOR_BYTES, this.size) };
    }
    let next = Infinity;
    for (const other of this.#live.keys()) if (other > index && other < next) next = other;
    return { kind: "hole", end: Math.min(next * SECTOR_BYTES, this.size) };
  }

  syncPoint(): SyncPoint {
    return { upTo: this.#version };
  }

  /** The sync has succeeded: what was there when it began is durable. */
  finishSync({ upTo }: SyncPoint): void {
    for (const [index, versions] of this.#pending) {
      let newest: Version | undefined;
      for (const version of versions) if (version.number <= upTo) newest = version;
      if (newest === undefined) continue;
      this.#store(index, newest.sector);
      this.#keepAfter(index, versions, upTo);
    }
    const size = this.#pendingSizes.findLast((it) => it.number <= upTo);
    if (size !== undefined) this.#durableSize = size.size;
    this.#pendingSizes = this.#pendingSizes.filter((it) => it.number > upTo);
  }

  /**
   * The sync has failed: some sectors reached the medium, the others did not, and all count as clean from now on, so
   * that the next sync succeeds without them. Reads go on finding them, until the power goes.
   */
  failSync({ upTo }: SyncPoint, rng: Prng): void {
    for (const [index, versions] of this.#pending) {
      const newest = versions.findLast((version) => version.number <= upTo);
      if (newest === undefined) continue;
      const reached = rng.chance(0.5);
      // A hole is no page that could be taken for clean, but the file system's own record, and waits for the next sync.
      if (newest.sector === undefined) continue;
      if (reached) this.#store(index, newest.sector);
      this.#keepAfter(index, versions, upTo);
    }
  }

  /** What was pending is kept, lost or torn, each sector on its own; then the page cache is empty. */
  losePower(rng: Prng): void {
    const keep = rng.pick([0, 0.2, 0.5, 0.8, 1]);
    for (const [index, versions] of this.#pending) {
      const old = this.#durable.get(index);
      if (!rng.chance(keep)) continue;
      const kept = rng.chance(0.7) ? versions.at(-1)?.sector : rng.pick(versions).sector;
      this.#store(index, rng.chance(0.15) ? torn(old, kept, rng) : kept);
    }
    if (this.#pendingSizes.length > 0 && rng.chance(0.5)) this.#durableSize = rng.pick(this.#pendingSizes).size;
    this.#pending.clear();
    this.#pendingSizes = [];
    this.#live.clear();
    this.size = this.#durableSize;
    for (const [index, sector] of this.#durable) {
      if (index * SECTOR_BYTES < this.size) this.#live.set(index, sector);
      else this.#durable.delete(index);
    }
    this.holders.clear();
  }

  #put(index: number, sector: Sector): void {
    const version = { number: ++this.#version, sector };
    const versions = this.#pending.get(index);
    if (versions === undefined) this.#pending.set(index, [version]);
    else versions.push(version);
    if (sector === undefined) this.#live.delete(index);
    else this.#live.set(index, sector);
  }

  #store(index: number, sector: Sector): void {
    if (sector === undefined) this.#durable.delete(index);
    else this.#durable.set(index, sector);
  }

  #keepAfter(index: number, versions: readonly Version[], upTo: number): void {
    const later = versions.filter((version) => version.number > upTo);
    if (later.length === 0) this.#pending.delete(index);
    else this.#pending.set(index, later);
  }

  #resize(size: number): void {
    if (size === this.size) return;
    this.size = size;
    this.#pendingSizes.push({ number: ++this.#version, size });
  }
}

/** The beginning of one, and the rest of the other. */
function torn(old: Sector, kept: Sector, rng: Prng): Uint8Array {
  const bytes = (old ?? ZERO_SECTOR).slice();
  const cut = TEAR_BYTES * rng.integer(1, SECTOR_BYTES / TEAR_BYTES - 1);
  const [from, to] = rng.chance(0.5) ? [0, cut] : [cut, SECTOR_BYTES];
  bytes.set((kept ?? ZERO_SECTOR).subarray(from, to), from);
  return bytes;
}
