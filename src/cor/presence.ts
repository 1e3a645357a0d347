/**
 * Which clusters the store holds: three sets, present (in memory) ⊇ sealed (by the commit under way) ⊇ durable (in the map,
 * synced), and a mark for clusters whose guest writes the intent log knows of.
 *
 * Invariants
 * - A bit is set after the cluster's data write has completed, and is never cleared.
 * - A page is empty, full (neither takes memory), clean (cached, may be evicted: the file has it), or dirty: present or
 *   sealed differ from durable, kept in memory until a commit settles it.
 * - Methods that answer `undefined` or false found a page that is not in memory: await `load(cluster)` and ask again.
 */
import { bitAt, bitCount, runEnd, setBits } from "./bits.ts";
import type { MapFile } from "./map-file.ts";
import { PAGE_BITS_BYTES, PAGE_CLUSTERS } from "./map-format.ts";

/** Together with four bit sets a dirty page: at most 32 MiB. */
const CLEAN_PAGES_MAX = 3072;
const DIRTY_PAGES_MAX = 1024;

const EMPTY = new Uint8Array(PAGE_BITS_BYTES);
const FULL = new Uint8Array(PAGE_BITS_BYTES).fill(0xff);
const KIND_EMPTY = 0;
const KIND_FULL = 1;
const KIND_MIXED = 2;

/** Bit sets are copied before a change when they are shared, with each other or with EMPTY and FULL. */
interface Page {
  present: Uint8Array;
  sealed: Uint8Array | undefined;
  durable: Uint8Array;
  logged: Uint8Array | undefined;
  count: number;
}

/** Clusters from the one asked for to `last`, all of one kind. */
export interface PresenceRun {
  readonly present: boolean;
  readonly last: number;
}

export class Presence {
  readonly clusters: number;
  readonly #map: MapFile;
  readonly #kinds: Uint8Array;
  readonly #clean = new Map<number, Page>();
  readonly #dirty = new Map<number, Page>();
  #presentCount = 0;
  #lastPresent = false;

  constructor(map: MapFile, clusters: number) {
    this.clusters = clusters;
    this.#map = map;
    this.#kinds = new Uint8Array(map.pages);
  }

  /** Reads the whole map. With `rewrite`, what it holds is durable afterwards, whoever wrote it. */
  async open(rewrite: boolean): Promise<void> {
    await this.#map.scan((page, bits) => {
      const count = bitCount(bits);
      this.#presentCount += count;
      this.#kinds[page] = this.#kindOf(count);
      const last = this.clusters - 1 - page * PAGE_CLUSTERS;
      if (last < PAGE_CLUSTERS && bitAt(bits, last)) this.#lastPresent = true;
    }, rewrite);
  }

  get presentCount(): number {
    return this.#presentCount;
  }

  /** The last cluster, which may be short, is present. */
  get lastPresent(): boolean {
    return this.#lastPresent;
  }

  /** Present = durable. */
  get settled(): boolean {
    return this.#dirty.size === 0;
  }

  /** So much is dirty that a commit should come before more. */
  get crowded(): boolean {
    return this.#dirty.size >= DIRTY_PAGES_MAX;
  }

  /** Pages in memory, for tests of the bound. */
  get pagesHeld(): number {
    return this.#clean.size + this.#dirty.size;
  }

  /** How far the kind of `first` goes on, up to `last`. */
  run(first: number, last: number): PresenceRun | undefined {
    const present = this.has(first);
    if (present === undefined) return undefined;
    let end = first;
    while (end < last) {
      const number = Math.floor((end + 1) / PAGE_CLUSTERS);
      const stop = Math.min(last, (number + 1) * PAGE_CLUSTERS - 1);
      const uniform = this.#uniform(number);
      // An unloaded page ends the run: the caller comes back for it.
      const bits = uniform === undefined ? (this.#dirty.get(number) ?? this.#held(number))?.present : undefined;
      if (uniform === present) end = stop;
      else if (bits === undefined) break;
      else end = number * PAGE_CLUSTERS + runEnd(bits, [(end + 1) % PAGE_CLUSTERS, stop % PAGE_CLUSTERS], present);
      if (end < stop) break;
    }
    return { present, last: end };
  }

  has(cluster: number): boolean | undefined {
    const number = Math.floor(cluster / PAGE_CLUSTERS);
    const page = this.#dirty.get(number);
    if (page !== undefined) return bitAt(page.present, cluster % PAGE_CLUSTERS);
    if (this.#kinds[number] === KIND_EMPTY) return false;
    if (this.#kinds[number] === KIND_FULL) return true;
    const held = this.#held(number);
    return held && bitAt(held.present, cluster % PAGE_CLUSTERS);
  }

  /** All of [first, last] are present, as far as memory can tell. */
  hasAll(first: number, last: number): boolean {
    const run = this.run(first, last);
    return run?.present === true && run.last === last;
  }

  /** Brings the page of `cluster` into memory, if it is not there. */
  async load(cluster: number): Promise<void> {
    const number = Math.floor(cluster / PAGE_CLUSTERS);
    if (this.has(cluster) !== undefined) return;
    const bits = await this.#map.readPage(number);
    if (this.#kinds[number] === KIND_MIXED && !this.#dirty.has(number)) this.#keep(number, cleanPage(bits));
  }

  /** Adds [first, last] to the present set. False: not all of it was; load `first` and `last`, and ask again. */
  add(first: number, last: number): boolean {
    for (let at = first; at <= last; ) {
      const number = Math.floor(at / PAGE_CLUSTERS);
      const stop = Math.min(last, (number + 1) * PAGE_CLUSTERS - 1);
      const held = this.#pageOf(number);
      if (held === undefined) return false;
      this.#addTo(number, held, [at % PAGE_CLUSTERS, stop % PAGE_CLUSTERS]);
      at = stop + 1;
    }
    return true;
  }

  /** Every cluster of [first, last] is durable, or the intent log has a record of it. They must be present. */
  isGuarded(first: number, last: number): boolean {
    if (this.settled) return true;
    for (const [page, from, to] of this.#dirtyWithin(first, last)) {
      for (let bit = from; bit <= to; bit++) {
        if (!bitAt(page.durable, bit) && !(page.logged !== undefined && bitAt(page.logged, bit))) return false;
      }
    }
    return true;
  }

  /** The intent log has a record of [first, last]. */
  noteLogged(first: number, last: number): void {
    for (const [page, from, to] of this.#dirtyWithin(first, last)) {
      page.logged ??= new Uint8Array(PAGE_BITS_BYTES);
      setBits(page.logged, [from, to]);
    }
  }

  *#dirtyWithin(first: number, last: number): Generator<readonly [page: Page, from: number, to: number]> {
    for (let at = first; at <= last; ) {
      const number = Math.floor(at / PAGE_CLUSTERS);
      const stop = Math.min(last, (number + 1) * PAGE_CLUSTERS - 1);
      const page = this.#dirty.get(number);
      if (page !== undefined) yield [page, at % PAGE_CLUSTERS, stop % PAGE_CLUSTERS];
      at = stop + 1;
    }
  }

  /** Seals what is present now. One seal at a time; `settle` or `unseal` ends it. */
  seal(): void {
    for (const page of this.#dirty.values()) page.sealed = page.present;
  }

  /** What the map has to hold: durable ∪ sealed, by page. With `live` (a mutant), what is present now. */
  *sealed(live: boolean): Generator<readonly [page: number, bits: Uint8Array]> {
    for (const [number, page] of this.#dirty) {
      if (page.sealed !== undefined && page.sealed !== page.durable) yield [number, live ? page.present : page.sealed];
    }
  }

  /** The sealed set is in the map and synced: it is durable. */
  settle(): void {
    for (const [number, page] of this.#dirty) {
      if (page.sealed === undefined) continue;
      page.durable = page.sealed;
      page.sealed = undefined;
      if (page.present !== page.durable) continue;
      this.#dirty.delete(number);
      this.#kinds[number] = this.#kindOf(page.count);
      page.logged = undefined;
      if (this.#kinds[number] === KIND_MIXED) this.#keep(number, page);
    }
  }

  /** The commit did not come about. */
  unseal(): void {
    for (const page of this.#dirty.values()) page.sealed = undefined;
  }

  #addTo(number: number, page: Page, [from, to]: readonly [number, number]): void {
    if (page.present === FULL || runEnd(page.present, [from, to], true) === to) return;
    if (!this.#dirty.has(number)) {
      this.#clean.delete(number);
      this.#dirty.set(number, page);
    }
    const whole = to - from === PAGE_CLUSTERS - 1;
    const shared = page.present === page.durable || page.present === page.sealed || page.present === EMPTY;
    if (shared && !whole) page.present = page.present.slice();
    const added = whole ? PAGE_CLUSTERS - page.count : setBits(page.present, [from, to]);
    page.count += added;
    this.#presentCount += added;
    if (number * PAGE_CLUSTERS + to === this.clusters - 1) this.#lastPresent = true;
    if (page.count === PAGE_CLUSTERS) page.present = FULL;
  }

  /** Only asked for pages that are not dirty. */
  #kindOf(count: number): number {
    if (count === 0) return KIND_EMPTY;
    return count === PAGE_CLUSTERS ? KIND_FULL : KIND_MIXED;
  }

  #uniform(number: number): boolean | undefined {
    const dirty = this.#dirty.get(number);
    if (dirty !== undefined) return dirty.present === FULL ? true : undefined;
    if (this.#kinds[number] === KIND_MIXED) return undefined;
    return this.#kinds[number] === KIND_FULL;
  }

  #pageOf(number: number): Page | undefined {
    const dirty = this.#dirty.get(number);
    if (dirty !== undefined) return dirty;
    if (this.#kinds[number] === KIND_EMPTY) return cleanPage(EMPTY);
    if (this.#kinds[number] === KIND_FULL) return cleanPage(FULL);
    return this.#held(number);
  }

  #held(number: number): Page | undefined {
    const held = this.#clean.get(number);
    if (held !== undefined) return held;
    const bits = this.#map.readPageNow(number);
    return bits && this.#keep(number, cleanPage(bits));
  }

  #keep(number: number, page: Page): Page {
    this.#clean.set(number, page);
    if (this.#clean.size > CLEAN_PAGES_MAX) {
      const [oldest] = this.#clean.keys();
      if (oldest !== undefined) this.#clean.delete(oldest);
    }
    return page;
  }
}

function cleanPage(bits: Uint8Array): Page {
  return { present: bits, sealed: undefined, durable: bits, logged: undefined, count: countIn(bits) };
}

function countIn(bits: Uint8Array): number {
  if (bits === EMPTY) return 0;
  return bits === FULL ? PAGE_CLUSTERS : bitCount(bits);
}
