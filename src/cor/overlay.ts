/**
 * A store over a backing, as one block device. Per cluster: REMOTE → LOCAL, by a write that covers it or by a fetch that
 * is stored; a fetch on its way is a claim. Nothing returns to REMOTE. See `fetcher.ts` and `writer.ts` for who may store
 * what, `commit.ts` for when it is durable.
 *
 * `close` makes nothing durable: a flush before it lets the next open trust the map as it is.
 */
import type { BlockCapabilities, BlockDevice, WriteOptions, ZeroOptions } from "../block/device.ts";
import { BlockError, checkRange } from "../block/error.ts";
import { appendExtent, type Extent } from "../block/extents.ts";
import type { OverlayStore } from "../block/overlay-store.ts";
import type { Chaos } from "../env/chaos.ts";
import type { Clock } from "../env/clock.ts";
import { InFlight } from "../util/in-flight.ts";
import { RangeLock } from "../util/range-lock.ts";
import { Claims } from "./claims.ts";
import { Commit } from "./commit.ts";
import { blockErrorFrom } from "./errors.ts";
import { allSettled, Fetcher } from "./fetcher.ts";
import type { IntentLog } from "./intent-log.ts";
import type { MapFile } from "./map-file.ts";
import { bytesOf, clustersOf, type OverlayParts, runOf } from "./parts.ts";
import type { Presence } from "./presence.ts";
import { Writer } from "./writer.ts";

const FETCH_UNIT_BYTES_DEFAULT = 64 * 1024;

export interface ClusterRange {
  readonly first: number;
  readonly count: number;
}

/** Bytes that are local or missing alike. */
export interface PresenceExtent {
  readonly length: number;
  readonly local: boolean;
}

export interface NewOverlay {
  /** Taken over: `close` closes store, map and log. */
  readonly store: OverlayStore;
  readonly map: MapFile;
  readonly log: IntentLog;
  readonly presence: Presence;
  /** Stay the caller's. Exactly as large as the overlay; their contents do not change. */
  readonly backing: BlockDevice;
  readonly background: BlockDevice;
  /** For what is fetched ahead of reads; `background` unless given. */
  readonly ahead?: BlockDevice;
  readonly fetchUnitBytes?: number;
  readonly clock: Clock;
  readonly chaos: Chaos;
}

export class Overlay implements BlockDevice {
  readonly sizeBytes: number;
  readonly clusterBytes: number;
  readonly capabilities: BlockCapabilities;
  readonly #parts: OverlayParts;
  readonly #map: MapFile;
  readonly #fetcher: Fetcher;
  readonly #writer: Writer;
  readonly #inFlight = new InFlight();
  #closing: Promise<void> | undefined;

  constructor(options: NewOverlay) {
    const { store, map, log, presence, backing, background, ahead = background, clock, chaos } = options;
    const { sizeBytes, clusterBytes } = map.superblock;
    this.sizeBytes = sizeBytes;
    this.clusterBytes = clusterBytes;
    this.capabilities = { ...store.capabilities, extents: true };
    const commit = new Commit({ store, map, presence, log, clock, chaos });
    this.#parts = {
      ...{ sizeBytes, clusterBytes, store, backing, background, ahead, presence, commit, log, chaos },
      claims: new Claims(),
      locks: new RangeLock(),
    };
    this.#map = map;
    this.#fetcher = new Fetcher(this.#parts, options.fetchUnitBytes ?? FETCH_UNIT_BYTES_DEFAULT);
    this.#writer = new Writer(this.#parts, this.#fetcher);
  }

  get clusters(): number {
    return this.#parts.presence.clusters;
  }

  get localClusters(): number {
    return this.#parts.presence.presentCount;
  }

  /** Bytes of the disk that are local: the last cluster may be short. */
  get localBytes(): number {
    const { presentCount, lastPresent } = this.#parts.presence;
    const short = lastPresent ? this.clusters * this.clusterBytes - this.sizeBytes : 0;
    return presentCount * this.clusterBytes - short;
  }

  get term(): number {
    return this.#map.superblock.term;
  }

  /** Demand replies that could not be stored (they reached the guest, and are fetched again when needed). */
  get storeFailures(): number {
    return this.#fetcher.storeFailures;
  }

  /** Whether every cluster of the range, which is not empty, is local, as far as memory can tell at once. */
  isLocal(offset: number, length: number): boolean {
    if (this.localClusters === this.clusters) return true;
    return this.#parts.presence.hasAll(...clustersOf(this.#parts, offset, length));
  }

  readNow(offset: number, into: Uint8Array): number {
    if (this.#inFlight.closed || !(offset >= 0 && offset + into.length <= this.sizeBytes)) return -1;
    if (into.length > 0 && !this.isLocal(offset, into.length)) return -1;
    return this.#parts.store.readNow(offset, into);
  }

  read(offset: number, into: Uint8Array): Promise<void> {
    return this.#guarded(offset, into.length, async () => {
      const jobs: Promise<void>[] = [];
      await this.#eachRun(offset, into.length, (present, at, end) => {
        const part = into.subarray(at - offset, end - offset);
        jobs.push(present ? this.#parts.store.read(at, part) : this.#fetcher.read(at, part));
      }).finally(() => allSettled(jobs));
    });
  }

  /** Only where everything is local, and the next flush or the intent log will cover it as it is. */
  writeNow(offset: number, from: Uint8Array): number {
    if (this.#inFlight.closed || from.length === 0 || this.capabilities.readOnly || this.#parts.commit.latched)
      return -1;
    if (!(offset >= 0 && offset + from.length <= this.sizeBytes) || !this.isLocal(offset, from.length)) return -1;
    const [first, last] = clustersOf(this.#parts, offset, from.length);
    const { presence, locks, store, commit } = this.#parts;
    if (!presence.isGuarded(first, last) || !locks.isFree(first, last)) return -1;
    try {
      return store.writeNow(offset, from);
    } catch (error) {
      commit.failed(error);
      // Told by the write that follows: after the log is gone.
      if (commit.latched) return -1;
      throw blockErrorFrom(error);
    }
  }

  write(offset: number, from: Uint8Array, options?: WriteOptions): Promise<void> {
    return this.#changing(offset, from.length, options, () => this.#writer.write(offset, from));
  }

  writeZeroes(offset: number, length: number, options: ZeroOptions = {}): Promise<void> {
    return this.#changing(offset, length, options, () => this.#writer.zero(offset, length, options));
  }

  discard(offset: number, length: number, options?: WriteOptions): Promise<void> {
    return this.#changing(offset, length, options, () => this.#writer.discard(offset, length));
  }

  cache(offset: number, length: number): Promise<void> {
    return this.#guarded(offset, length, () => this.#parts.store.cache(offset, length));
  }

  flush(): Promise<void> {
    return this.#guarded(0, 0, async () => {
      if (!this.capabilities.readOnly) await this.#parts.commit.flush();
    });
  }

  /** As `flush`, and of what was fetched as well: the next open finds all that is here now. */
  commit(): Promise<void> {
    return this.#guarded(0, 0, async () => {
      if (!this.capabilities.readOnly) await this.#parts.commit.full();
    });
  }

  extents(offset: number, length: number, countMax: number): Promise<Extent[]> {
    return this.#guarded(offset, length, async () => {
      if (!(length >= 1 && countMax >= 1)) throw new BlockError("invalid", "no extents were asked for");
      const list: Extent[] = [];
      const last = clustersOf(this.#parts, offset, length)[1];
      let at = offset;
      // One kind of cluster is enough when its device has much to say; the caller asks again for the rest.
      while (at < offset + length && list.length < countMax) {
        const [cluster] = clustersOf(this.#parts, at, 1);
        const run = await runOf(this.#parts.presence, cluster, last);
        const end = Math.min(bytesOf(this.#parts, cluster, run.last)[1], offset + length);
        const device = run.present ? this.#parts.store : this.#parts.backing;
        const part = await device.extents(at, end - at, countMax - list.length);
        for (const extent of part) {
          appendExtent(list, extent);
          at += extent.length;
        }
        if (at < end) break;
      }
      return list;
    });
  }

  /** What of [offset, offset + length) is local, from `offset` on without gaps: at least one run, at most `countMax`. */
  presenceExtents(offset: number, length: number, countMax: number): Promise<PresenceExtent[]> {
    return this.#guarded(offset, length, async () => {
      if (!(length >= 1 && countMax >= 1)) throw new BlockError("invalid", "no extents were asked for");
      const list: PresenceExtent[] = [];
      for (let at = offset; at < offset + length; ) {
        const [cluster, last] = clustersOf(this.#parts, at, offset + length - at);
        const run = await runOf(this.#parts.presence, cluster, last);
        const end = Math.min(bytesOf(this.#parts, cluster, run.last)[1], offset + length);
        const before = list.at(-1);
        // A run ends where memory does; the next may be of the same kind.
        if (before?.local === run.present) list[list.length - 1] = { ...before, length: before.length + end - at };
        else if (list.length === countMax) break;
        else list.push({ length: end - at, local: run.present });
        at = end;
      }
      return list;
    });
  }

  /** Writes the ownership number into both copies of the map's superblock; durable when resolved. */
  setTerm(term: number): Promise<void> {
    return this.#guarded(0, 0, () => this.#map.updateBoth({ term }));
  }

  /** Fetches and stores what is missing of the clusters, for hydration. Resolves to the bytes stored. */
  fetchBackground({ first, count }: ClusterRange): Promise<number> {
    return this.#guarded(0, 0, () => this.#fetcher.background(first, count));
  }

  /**
   * Fetches and stores what is missing of the clusters, for reads that are expected: they join it rather than fetch anew.
   * A demand read of what it could not bring asks again.
   */
  fetchAhead({ first, count }: ClusterRange): Promise<void> {
    return this.#guarded(0, 0, () => this.#fetcher.ahead(first, count));
  }

  /** How much a demand read at an offset brings at once, in bytes; asked for each one. */
  setDemandUnit(unitBytesAt: (offset: number) => number): void {
    this.#fetcher.setUnit(unitBytesAt);
  }

  /** As `fetchBackground`, for clusters that the backing is known to have as zeroes: nothing is fetched. */
  zeroBackground({ first, count }: ClusterRange): Promise<number> {
    return this.#guarded(0, 0, () => this.#fetcher.backgroundZero(first, count));
  }

  /** Runs of missing clusters from `first` on and before `end`, each as found when it is asked for. */
  async *missing(first = 0, end = this.clusters): AsyncGenerator<ClusterRange> {
    const last = Math.min(end, this.clusters) - 1;
    for (let at = first; at <= last; ) {
      const run = await runOf(this.#parts.presence, at, last);
      if (!run.present) yield { first: at, count: run.last - at + 1 };
      at = run.last + 1;
    }
  }

  /**
   * Everything is local: makes it durable, says so in the map, and lets the store stand alone. Throws
   * `BlockError("invalid")` while anything is missing. May be repeated.
   */
  complete(): Promise<void> {
    return this.#guarded(0, 0, async () => {
      if (this.localClusters < this.clusters) throw new BlockError("invalid", "clusters are still missing");
      await this.#parts.commit.full();
      if (this.#map.superblock.state !== "complete") await this.#map.update({ state: "complete" });
      await this.#parts.store.complete();
    });
  }

  /**
   * Waits for what is under way, also for reads of the backing: its owner closes the backing first, so that they end.
   */
  close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  async #close(): Promise<void> {
    await this.#inFlight.close();
    const { commit, presence, store, log } = this.#parts;
    try {
      await this.#fetcher.drain();
      commit.unsynced.close();
      await commit.drain();
      const clean = presence.settled && !commit.latched && this.#map.superblock.state === "open";
      // Not clean is always right: then the next open writes the map's sectors again.
      if (clean) await this.#map.update({ state: "clean" }).catch(() => undefined);
    } finally {
      await allSettled([store.close(), this.#map.close(), log.close()]);
    }
  }

  async #eachRun(
    offset: number,
    length: number,
    visit: (present: boolean, at: number, end: number) => void,
  ): Promise<void> {
    if (length === 0) return;
    const [first, last] = clustersOf(this.#parts, offset, length);
    for (let cluster = first; cluster <= last; ) {
      const run = await runOf(this.#parts.presence, cluster, last);
      const [start, end] = bytesOf(this.#parts, cluster, run.last);
      visit(run.present, Math.max(start, offset), Math.min(end, offset + length));
      cluster = run.last + 1;
    }
  }

  #changing(offset: number, length: number, options: WriteOptions = {}, change: () => Promise<void>): Promise<void> {
    return this.#guarded(offset, length, async () => {
      if (this.capabilities.readOnly) throw new BlockError("read-only", "the overlay's store is open read-only");
      if (length > 0) await change();
      if (options.fua) await this.#parts.commit.flush();
    });
  }

  async #guarded<T>(offset: number, length: number, operation: () => Promise<T>): Promise<T> {
    if (!this.#inFlight.enter()) throw new BlockError("shutting-down", "the overlay is closed");
    try {
      checkRange(offset, length, this.sizeBytes);
      return await operation();
    } catch (error) {
      // Who has been told that data was lost must not find it again as if it were durable, because we were killed too early.
      if (this.#parts.commit.latched) await this.#parts.log.destroyed();
      throw blockErrorFrom(error);
    } finally {
      this.#inFlight.leave();
    }
  }
}
