/**
 * Brings clusters from the backing. No lock is held while a request is on the way, only a claim; what comes is stored
 * where the claim is still good. A demand read gets its bytes before they are stored. It joins another demand fetch of
 * the same clusters, or one ahead of reads, until that is stored; but it never waits for a background fetch: it is asked
 * again, and the later reply finds the claim gone.
 */
import type { BlockDevice } from "../block/device.ts";
import { BlockError } from "../block/error.ts";
import { BufferPool } from "../util/buffer-pool.ts";
import { isZero } from "../util/zeroes.ts";
import type { Claim } from "./claims.ts";
import { PAGE_CLUSTERS } from "./map-format.ts";
import { addTo, bytesOf, clustersOf, type OverlayParts, runOf } from "./parts.ts";

const REQUEST_BYTES_MAX = 1024 * 1024;
/** Replies handed to guests and not stored yet; beyond it a demand read waits for its own store write. */
const BACKLOG_BYTES_MAX = 16 * 1024 * 1024;
/** Zeroes that cost nothing become local by so many clusters at a time: 8 GiB of 4 KiB clusters. */
const ZERO_CLUSTERS_MAX = 64 * PAGE_CLUSTERS;
/** Write-back is begun when so much was stored: a sync then finds little left to do. */
const WRITEBACK_BYTES = 8 * 1024 * 1024;

export interface Fetched {
  readonly claim: Claim;
  readonly bytes: Uint8Array;
}

interface Demand {
  readonly first: number;
  readonly last: number;
  readonly claim: Claim;
  /** Nobody had asked for it when it was begun. */
  readonly ahead: boolean;
  readonly bytes: Promise<Uint8Array>;
  /** Settles when it is stored, or will not be. */
  readonly stored: Promise<void>;
}

export class Fetcher {
  readonly #parts: OverlayParts;
  #unitBytesAt: (offset: number) => number;
  readonly #demands = new Set<Demand>();
  readonly #storing = new Set<Promise<void>>();
  readonly #pool = new BufferPool();
  #backlogBytes = 0;
  /** Where something was stored since write-back was last begun, and how much. */
  #writeback = { start: Infinity, end: 0, bytes: 0 };
  /** Demand replies that could not be stored: they reached the guest, and will be fetched again. */
  storeFailures = 0;

  /** `unitBytes`: a demand read brings the missing clusters of its whole unit. */
  constructor(parts: OverlayParts, unitBytes: number) {
    this.#parts = parts;
    this.#unitBytesAt = () => unitBytes;
  }

  /** How long the unit of a demand read at an offset is. */
  setUnit(unitBytesAt: (offset: number) => number): void {
    this.#unitBytesAt = unitBytesAt;
  }

  /** Fills `into` from clusters that were missing when this was called. */
  async read(offset: number, into: Uint8Array): Promise<void> {
    const { clusterBytes } = this.#parts;
    const step = Math.max(clusterBytes, REQUEST_BYTES_MAX);
    const jobs: Promise<void>[] = [];
    for (let done = 0; done < into.length; ) {
      const at = offset + done;
      const alike = this.#onItsWay(Math.floor(at / clusterBytes)).end * clusterBytes - at;
      const length = Math.min(into.length - done, step - (at % step), alike);
      jobs.push(this.#readPiece(at, into.subarray(done, done + length)));
      done += length;
    }
    await allSettled(jobs);
  }

  /** One cluster, claimed but not stored. The caller releases the claim. */
  async cluster(cluster: number): Promise<Fetched> {
    const claim = this.#parts.claims.take(cluster, 1);
    try {
      return { claim, bytes: await this.#request(claim) };
    } catch (error) {
      this.#parts.claims.release(claim);
      throw error;
    }
  }

  /** Fetches and stores what is missing of the clusters, by requests of at most 1 MiB. Resolves to the bytes stored. */
  async background(first: number, count: number): Promise<number> {
    const step = Math.max(1, REQUEST_BYTES_MAX / this.#parts.clusterBytes);
    return this.#eachMissing([first, count, step], (from, to) => this.#bring(from, to));
  }

  async #bring(first: number, last: number): Promise<number> {
    const { claims, background, chaos } = this.#parts;
    const claim = claims.take(first, last - first + 1);
    const [start, end] = bytesOf(this.#parts, first, last);
    const buffer = this.#pool.take(end - start);
    const tooEarly = chaos.on("cor/buffer-too-early");
    try {
      const bytes = buffer.subarray(0, end - start);
      await background.read(start, bytes);
      if (tooEarly) this.#pool.give(buffer);
      return await this.#store(claim, bytes);
    } finally {
      if (!tooEarly) this.#pool.give(buffer);
      claims.release(claim);
    }
  }

  /** Fetches what is missing of the clusters for reads that are expected, which join it. Resolves when it is stored. */
  async ahead(first: number, count: number): Promise<void> {
    const { presence, commit } = this.#parts;
    const last = Math.min(first + count, presence.clusters) - 1;
    commit.check();
    if (commit.unsynced.full || presence.crowded) await commit.full();
    const jobs: Promise<void>[] = [];
    for (let at = first; at <= last; ) {
      const run = await runOf(presence, at, last);
      const { demand, end } = this.#onItsWay(at);
      const stop = Math.min(run.last + 1, end);
      if (!run.present && demand === undefined) jobs.push(this.#begin(at, stop - 1, true).stored);
      at = stop;
    }
    await allSettled(jobs);
  }

  /** As `background`, for clusters that the backing has as zeroes. */
  async backgroundZero(first: number, count: number): Promise<number> {
    const { store, clusterBytes } = this.#parts;
    const step = store.capabilities.fastZero ? ZERO_CLUSTERS_MAX : Math.max(1, REQUEST_BYTES_MAX / clusterBytes);
    return this.#eachMissing([first, count, step], (from, to) => this.#storeZeroes(from, to));
  }

  /** Nothing is on its way, so there is no claim: what is missing under the lock is what the backing has. */
  async #storeZeroes(first: number, last: number): Promise<number> {
    const { locks, presence } = this.#parts;
    const unlock = await locks.take(first, last);
    let stored = 0;
    try {
      for (let at = first; at <= last; ) {
        const run = await runOf(presence, at, last);
        if (!run.present) stored += await this.#put(undefined, [at, run.last]);
        at = run.last + 1;
      }
    } finally {
      unlock();
    }
    return stored;
  }

  /** Waits until every reply is stored. */
  async drain(): Promise<void> {
    while (this.#storing.size > 0) await Promise.all(this.#storing);
  }

  async #eachMissing(
    [first, count, step]: readonly [first: number, count: number, step: number],
    bring: (from: number, to: number) => Promise<number>,
  ): Promise<number> {
    const { presence, commit } = this.#parts;
    const last = Math.min(first + count, presence.clusters) - 1;
    let stored = 0;
    for (let at = first; at <= last; ) {
      commit.check();
      const run = await runOf(presence, at, Math.min(last, at + step - 1));
      if (!run.present) stored += await bring(at, run.last);
      at = run.last + 1;
      if (commit.unsynced.full || presence.crowded) await commit.full();
    }
    return stored;
  }

  async #readPiece(offset: number, into: Uint8Array): Promise<void> {
    const [first, last] = clustersOf(this.#parts, offset, into.length);
    let demand = this.#joinable(first, last) ?? this.#demand(first, last);
    let bytes: Uint8Array;
    try {
      bytes = await demand.bytes;
    } catch (error) {
      if (!demand.ahead) throw error;
      // What went wrong ahead of a read is not the read's answer.
      demand = this.#demand(first, last);
      bytes = await demand.bytes;
    }
    const skip = offset - demand.first * this.#parts.clusterBytes;
    into.set(bytes.subarray(skip, skip + into.length));
    if (this.#backlogBytes > BACKLOG_BYTES_MAX) await this.drain();
  }

  /** What is missing has seen no write that has completed, so what is on its way from the backing is right for a read. */
  #joinable(first: number, last: number): Demand | undefined {
    const { demand, end } = this.#onItsWay(first);
    return demand !== undefined && last < end ? demand : undefined;
  }

  /** The demand that brings `cluster`, if one does, and up to where (exclusive) that is so for the clusters behind it. */
  #onItsWay(cluster: number): { readonly demand: Demand | undefined; readonly end: number } {
    let end = Infinity;
    for (const demand of this.#demands) {
      if (demand.first > cluster) end = Math.min(end, demand.first);
      else if (demand.last >= cluster && demand.claim.isGood(cluster)) {
        let good = cluster + 1;
        while (good <= demand.last && demand.claim.isGood(good)) good += 1;
        return { demand, end: good };
      }
    }
    return { demand: undefined, end };
  }

  #demand(wantedFirst: number, wantedLast: number): Demand {
    const [first, last] = this.#unitAround(wantedFirst, wantedLast);
    return this.#begin(first, last, false);
  }

  #begin(first: number, last: number, ahead: boolean): Demand {
    const claim = this.#parts.claims.take(first, last - first + 1);
    const bytes = this.#request(claim, ahead ? this.#parts.ahead : this.#parts.backing);
    const stored = bytes
      .then((reply) => this.#storeDemand(claim, reply))
      .catch((error: unknown) => {
        // The reader has been told of what the backing said. Anything else is a bug, and `drain` says so.
        if (!(error instanceof BlockError)) throw error;
      })
      .finally(() => {
        this.#demands.delete(demand);
        this.#storing.delete(stored);
        this.#parts.claims.release(claim);
      });
    const demand: Demand = { first, last, claim, ahead, bytes, stored };
    this.#demands.add(demand);
    this.#storing.add(stored);
    return demand;
  }

  async #storeDemand(claim: Claim, bytes: Uint8Array): Promise<void> {
    this.#backlogBytes += bytes.length;
    try {
      if (this.#parts.commit.latched) return;
      await this.#store(claim, bytes);
      const { commit, presence } = this.#parts;
      if (commit.unsynced.full || presence.crowded) commit.kick();
    } catch (error) {
      this.storeFailures += 1;
      throw error;
    } finally {
      this.#backlogBytes -= bytes.length;
    }
  }

  /** The unit that holds the clusters, cut down to the missing ones around them, as far as memory can tell. */
  #unitAround(first: number, last: number): [first: number, last: number] {
    const { presence, clusterBytes } = this.#parts;
    const unit = Math.max(1, Math.floor(this.#unitBytesAt(first * clusterBytes) / clusterBytes));
    const from = Math.floor(first / unit) * unit;
    const to = Math.min((Math.floor(last / unit) + 1) * unit, presence.clusters) - 1;
    let start = first;
    while (start > from && presence.has(start - 1) === false) start -= 1;
    let end = last;
    while (end < to && presence.has(end + 1) === false) end += 1;
    return [start, end];
  }

  async #request(claim: Claim, device: BlockDevice = this.#parts.backing): Promise<Uint8Array> {
    const [start, end] = bytesOf(this.#parts, claim.first, claim.first + claim.count - 1);
    const bytes = new Uint8Array(end - start);
    await device.read(start, bytes);
    return bytes;
  }

  /** Stores a reply where its claim is good. Resolves to the bytes stored. */
  async #store(claim: Claim, bytes: Uint8Array): Promise<number> {
    const { locks, chaos } = this.#parts;
    const last = claim.first + claim.count - 1;
    let unlock = await locks.take(claim.first, last);
    let stored = 0;
    try {
      for (let at = claim.first; at <= last; ) {
        const end = await this.#goodUntil(claim, at);
        if (chaos.on("cor/check-without-lock")) {
          unlock();
          unlock = await locks.take(claim.first, last);
        }
        if (end >= at) stored += await this.#put(this.#partOf(claim, bytes, [at, end]), [at, end]);
        at = Math.max(end, at) + 1;
      }
    } finally {
      unlock();
    }
    return stored;
  }

  #partOf(claim: Claim, bytes: Uint8Array, [from, to]: readonly [number, number]): Uint8Array {
    const [origin] = bytesOf(this.#parts, claim.first, claim.first);
    const [start, end] = bytesOf(this.#parts, from, to);
    return bytes.subarray(start - origin, end - origin);
  }

  /** The last of the clusters from `from` on that may be stored; `from` − 1: not even that. The lock is held. */
  async #goodUntil(claim: Claim, from: number): Promise<number> {
    const last = claim.first + claim.count - 1;
    if (this.#parts.chaos.on("cor/fetch-overwrites-newer")) return last;
    const run = await runOf(this.#parts.presence, from, last);
    let at = from;
    while (!run.present && at <= run.last && claim.isGood(at)) at += 1;
    return at - 1;
  }

  /** Under the lock: `bytes` (`undefined`: zeroes) become what the clusters hold, locally. */
  async #put(bytes: Uint8Array | undefined, [from, to]: readonly [number, number]): Promise<number> {
    const { store, presence, claims, chaos, commit } = this.#parts;
    const [start, end] = bytesOf(this.#parts, from, to);
    const zero = bytes === undefined || isZero(bytes);
    if (chaos.on("cor/bit-at-request")) await addTo(presence, from, to);
    try {
      if (!zero) await store.putFetched(from, bytes);
      else if (!chaos.on("cor/zero-without-punch")) await store.writeZeroes(start, end - start);
    } catch (error) {
      throw commit.failed(error);
    }
    await addTo(presence, from, to);
    claims.void(from, to);
    const free = zero && store.capabilities.fastZero;
    commit.unsynced.added(free ? 0 : end - start);
    if (!free) this.#beginWriteback(start, end);
    return end - start;
  }

  #beginWriteback(start: number, end: number): void {
    const now = this.#writeback;
    now.start = Math.min(now.start, start);
    now.end = Math.max(now.end, end);
    now.bytes += end - start;
    if (now.bytes < WRITEBACK_BYTES) return;
    this.#parts.store.startWriteback?.(now.start, now.end - now.start);
    this.#writeback = { start: Infinity, end: 0, bytes: 0 };
  }
}

/** Waits for all, then throws the first failure: a caller's buffer must not be in use when its promise settles. */
export async function allSettled(jobs: readonly Promise<void>[]): Promise<void> {
  if (jobs.length === 1) return jobs[0];
  for (const outcome of await Promise.allSettled(jobs)) if (outcome.status === "rejected") throw outcome.reason;
}
