/**
 * Guest changes to the overlay: writes, zeroes, discards. Whole clusters need nothing from the backing; a missing cluster
 * at an edge is fetched without a lock, merged, and written once. Before a change is acknowledged, its clusters are
 * durable or known to the intent log.
 */
import type { ZeroOptions } from "../block/device.ts";
import { BlockError } from "../block/error.ts";
import type { Fetched, Fetcher } from "./fetcher.ts";
import { PAGE_CLUSTERS } from "./map-format.ts";
import { addTo, bytesOf, clustersOf, type OverlayParts, runOf } from "./parts.ts";

/** A change of [start, end). */
interface Change {
  readonly start: number;
  readonly end: number;
  /** What happens to a missing cluster that is covered in part: fetch it and merge, or leave it alone. */
  readonly edges: "merge" | "leave" | "take-as-whole";
  /** Lays the change over `bytes`, which are those of the device from `offset` on. */
  patch(bytes: Uint8Array, offset: number): void;
  /** Brings [from, to) of the change to the store. */
  apply(from: number, to: number): Promise<void>;
}

export class Writer {
  readonly #parts: OverlayParts;
  readonly #fetcher: Fetcher;

  constructor(parts: OverlayParts, fetcher: Fetcher) {
    this.#parts = parts;
    this.#fetcher = fetcher;
  }

  write(offset: number, from: Uint8Array): Promise<void> {
    return this.#change({
      start: offset,
      end: offset + from.length,
      edges: "merge",
      patch(bytes, at) {
        const skip = Math.max(at - offset, 0);
        const length = Math.min(at + bytes.length - offset, from.length) - skip;
        bytes.set(from.subarray(skip, skip + length), offset + skip - at);
      },
      apply: (start, end) => this.#parts.store.putWritten(start, from.subarray(start - offset, end - offset)),
    });
  }

  async zero(offset: number, length: number, options: ZeroOptions): Promise<void> {
    const { store, chaos } = this.#parts;
    const { noHole = false, fastOnly = false } = options;
    if (fastOnly && !(store.capabilities.fastZero && (await this.#edgesHere(offset, length)))) {
      throw new BlockError("not-supported", "zeroing this range would take a fetch or writing the zeroes out");
    }
    await this.#inSteps(offset, length, (start, end) => ({
      start,
      end,
      edges: chaos.on("cor/partial-trim-sets-bit") ? "take-as-whole" : "merge",
      patch: (bytes, at) => bytes.fill(0, Math.max(start - at, 0), Math.min(end - at, bytes.length)),
      apply: (from, to) => this.#applyZero(from, to, { noHole, fastOnly }),
    }));
  }

  /** Whole clusters read as zeroes afterwards if they were missing. A missing cluster at an edge stays as it is. */
  async discard(offset: number, length: number): Promise<void> {
    const edges = this.#parts.chaos.on("cor/partial-trim-sets-bit") ? "take-as-whole" : "leave";
    await this.#inSteps(offset, length, (start, end) => ({
      start,
      end,
      edges,
      patch: () => undefined,
      apply: (from, to) => this.#applyDiscard(from, to),
    }));
  }

  /** One page of the map at a time, so that a change of terabytes neither locks nor dirties everything at once. */
  async #inSteps(offset: number, length: number, change: (start: number, end: number) => Change): Promise<void> {
    const step = PAGE_CLUSTERS * this.#parts.clusterBytes;
    for (let at = offset; at < offset + length; ) {
      const end = Math.min(at - (at % step) + step, offset + length);
      await this.#change(change(at, end));
      at = end;
    }
  }

  async #applyZero(from: number, to: number, options: ZeroOptions): Promise<void> {
    const { store, presence, chaos } = this.#parts;
    if (chaos.on("cor/zero-without-punch") && presence.has(clustersOf(this.#parts, from, 1)[0]) === false) return;
    await store.writeZeroes(from, to - from, options);
  }

  async #applyDiscard(from: number, to: number): Promise<void> {
    const { store, presence } = this.#parts;
    const last = clustersOf(this.#parts, from, to - from)[1];
    for (let at = from; at < to; ) {
      const [cluster] = clustersOf(this.#parts, at, 1);
      const run = await runOf(presence, cluster, last);
      const end = Math.min(bytesOf(this.#parts, cluster, run.last)[1], to);
      if (run.present) await store.discard(at, end - at);
      else await this.#applyZero(at, end, {});
      at = end;
    }
  }

  /** Whether no cluster that [offset, offset + length) covers in part is missing. */
  async #edgesHere(offset: number, length: number): Promise<boolean> {
    if (length === 0) return true;
    for (const cluster of this.#edges(offset, offset + length)) {
      if (!(await runOf(this.#parts.presence, cluster, cluster)).present) return false;
    }
    return true;
  }

  /** The clusters that [start, end) covers in part: none, one or two. */
  #edges(start: number, end: number): number[] {
    const [first, last] = clustersOf(this.#parts, start, end - start);
    return [...new Set([first, last])].filter((cluster) => {
      const [from, to] = bytesOf(this.#parts, cluster, cluster);
      return start > from || end < to;
    });
  }

  /** Under one hold of the lock: makes the change, or tells which edges have to be fetched first. */
  async #attempt(change: Change, fetched: Map<number, Fetched>): Promise<readonly number[]> {
    const unlock = await this.#parts.locks.take(...clustersOf(this.#parts, change.start, change.end - change.start));
    try {
      this.#parts.commit.check();
      const missing = await this.#missingEdges(change);
      const wanted = missing.filter((edge) => change.edges === "merge" && !fetched.get(edge)?.claim.isGood(edge));
      if (wanted.length === 0) await this.#perform(change, missing, fetched);
      return wanted;
    } finally {
      unlock();
    }
  }

  async #change(change: Change): Promise<void> {
    const { commit, presence, claims } = this.#parts;
    if (change.start === change.end) return;
    commit.check();
    if (presence.crowded) await commit.full();
    const fetched = new Map<number, Fetched>();
    try {
      let wanted = await this.#attempt(change, fetched);
      while (wanted.length > 0) {
        await this.#fetchEdges(wanted, fetched);
        wanted = await this.#attempt(change, fetched);
      }
    } finally {
      for (const { claim } of fetched.values()) claims.release(claim);
    }
  }

  async #fetchEdges(wanted: readonly number[], fetched: Map<number, Fetched>): Promise<void> {
    const outcomes = await Promise.allSettled(wanted.map((edge) => this.#fetcher.cluster(edge)));
    for (const [index, outcome] of outcomes.entries()) {
      const edge = wanted[index] ?? 0;
      if (outcome.status === "rejected") continue;
      const old = fetched.get(edge);
      if (old !== undefined) this.#parts.claims.release(old.claim);
      fetched.set(edge, outcome.value);
    }
    for (const outcome of outcomes) if (outcome.status === "rejected") throw outcome.reason;
  }

  async #missingEdges(change: Change): Promise<number[]> {
    if (change.edges === "take-as-whole") return [];
    const missing: number[] = [];
    for (const edge of this.#edges(change.start, change.end)) {
      if (!(await runOf(this.#parts.presence, edge, edge)).present) missing.push(edge);
    }
    return missing;
  }

  /** Under the lock: the missing edges have been fetched, or are to be left alone. */
  async #perform(change: Change, missingEdges: readonly number[], fetched: Map<number, Fetched>): Promise<void> {
    const { presence, claims, store, commit, chaos } = this.#parts;
    let { start, end } = change;
    const [first, last] = clustersOf(this.#parts, start, end - start);
    // What is left of the change once its missing edges are taken off.
    if (missingEdges.includes(first)) start = Math.min(bytesOf(this.#parts, first, first)[1], end);
    if (missingEdges.includes(last)) end = Math.max(bytesOf(this.#parts, last, last)[0], start);
    const leave = change.edges === "leave";
    if (leave && start >= end) return;
    const changed = leave ? clustersOf(this.#parts, start, end - start) : ([first, last] as const);
    claims.void(...changed);
    if (chaos.on("cor/bit-at-request")) await addTo(presence, ...changed);
    if (chaos.on("cor/log-before-data")) await this.#parts.log.append(changed[0], changed[1] - changed[0] + 1);
    try {
      for (const edge of leave ? [] : missingEdges) {
        const bytes = fetched.get(edge)?.bytes;
        if (bytes === undefined) throw new Error(`cluster ${edge} is to be merged and was not fetched`);
        const [offset] = bytesOf(this.#parts, edge, edge);
        change.patch(bytes, offset);
        await store.putWritten(offset, bytes);
      }
      if (start < end) await change.apply(start, end);
    } catch (error) {
      throw commit.failed(error);
    }
    await addTo(presence, ...changed);
    await this.#guard(...changed);
  }

  /** The lock is held until the record is written: the next writer of the cluster must not be told before. */
  async #guard(first: number, last: number): Promise<void> {
    const { presence, log, commit, chaos } = this.#parts;
    if (presence.isGuarded(first, last) || chaos.on("cor/log-skipped")) return;
    if (await log.append(first, last - first + 1)) presence.noteLogged(first, last);
    else await commit.full();
  }
}
