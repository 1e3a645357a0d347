/**
 * `IMAGE.map` as a file: superblocks, and pages of presence bits in two slots. Knows which slot holds each page; knows
 * nothing of what the bits mean. A page is written to the slot that does not hold it, with a generation greater than any
 * in the file, and holds from `settle` on, which the caller calls after a sync.
 */
import { dirname } from "node:path";
import type { Env } from "../env/env.ts";
import { type File, FileError } from "../env/files.ts";
import { isZero } from "../util/zeroes.ts";
import { OverlayRefusedError } from "./errors.ts";
import {
  clusterCount,
  decodePage,
  decodeSuperblock,
  encodePage,
  encodeSuperblock,
  type LoadedPage,
  PAGE_BYTES,
  pageCount,
  SECTOR_BYTES,
  SLOTS_OFFSET,
  type Slot,
  type Superblock,
} from "./map-format.ts";

type MapEnv = Pick<Env, "files" | "chaos">;
export type NewMap = Omit<Superblock, "generation" | "state">;

const SCAN_PAGES = 16;
const WRITE_PAGES_MAX = 64;
const RESTORE = "restore both files from a backup, or remove them and copy the disk again";

/** Makes a map without a single bit, in state "new"; durable with its directory before this resolves. */
export async function createMap(env: MapEnv, path: string, fields: NewMap): Promise<void> {
  const first = encodeSuperblock({ ...fields, state: "new", generation: 1 });
  const pages = pageCount(clusterCount(fields.sizeBytes, fields.clusterBytes));
  const file = await openNew(env, path);
  let mine = false;
  try {
    await file.lock("exclusive");
    if (!(await isBlank(file))) throw new FileError("EEXIST", `cannot create ${path}: there is a map already`);
    mine = true;
    // Nor may any old bit be left behind blank superblocks.
    await file.truncate(0);
    await file.truncate(SLOTS_OFFSET + 2 * pages * PAGE_BYTES);
    await file.write(0, first);
    await file.dataSync();
    await env.files.syncDirectory(dirname(path));
  } catch (error) {
    if (mine) await env.files.unlink(path).catch(() => undefined);
    throw error;
  } finally {
    await file.close();
  }
}

/**
 * A map without a byte in its superblocks is what a crash leaves of `createMap` (or a power cut, of its directory). Nothing
 * was made that depends on it, so it is as good as none.
 */
export async function isBlankMap(env: Pick<Env, "files">, path: string): Promise<boolean> {
  const file = await env.files.open({ path, writable: false, noFollow: true });
  try {
    return await isBlank(file);
  } finally {
    await file.close();
  }
}

async function openNew({ files }: MapEnv, path: string): Promise<File> {
  try {
    return await files.open({ path, writable: true, create: true, noFollow: true });
  } catch (error) {
    if (!(error instanceof FileError && error.code === "EEXIST")) throw error;
    return await files.open({ path, writable: true, noFollow: true });
  }
}

async function isBlank(file: File): Promise<boolean> {
  const bytes = new Uint8Array(SLOTS_OFFSET);
  return isZero(bytes.subarray(0, await file.read(0, bytes)));
}

/** Opens and locks a map. Writes nothing. Throws `OverlayRefusedError`, or a `FileError` of the host. */
export async function openMap(env: MapEnv, path: string): Promise<MapFile> {
  const file = await env.files.open({ path, writable: true, noFollow: true });
  try {
    await file.lock("exclusive");
    const copies = await Promise.all([readSuperblock(file, 0), readSuperblock(file, 1)]);
    if (copies.includes("later")) {
      throw new OverlayRefusedError("not-a-map", `${path} was written by a later version`, "use that version");
    }
    const [a, b] = copies as (Superblock | undefined)[];
    const newest = a !== undefined && (b === undefined || a.generation > b.generation) ? a : b;
    if (newest === undefined) {
      throw new OverlayRefusedError("map-corrupt", `${path} has no valid superblock`, RESTORE);
    }
    return new MapFile({ file, env, superblock: newest, superblockSlot: newest === a ? 0 : 1 });
  } catch (error) {
    await file.close();
    throw error;
  }
}

async function readSuperblock(file: File, slot: Slot): Promise<Superblock | "later" | undefined> {
  const bytes = new Uint8Array(SECTOR_BYTES);
  const count = await file.read(slot * PAGE_BYTES, bytes);
  return count === SECTOR_BYTES ? decodeSuperblock(bytes) : undefined;
}

interface Opened {
  readonly file: File;
  readonly env: MapEnv;
  readonly superblock: Superblock;
  readonly superblockSlot: Slot;
}

/** How far each slot is known to be a hole: most of a large map is, and asking costs a system call. */
type HoleEnds = [a: number, b: number];

interface PageRun {
  readonly page: number;
  readonly count: number;
  readonly holes: HoleEnds;
}

export class MapFile {
  readonly pages: number;
  readonly #file: File;
  readonly #env: MapEnv;
  readonly #slots: Uint8Array;
  #superblock: Superblock;
  #superblockSlot: Slot;
  #updates: Promise<void> = Promise.resolve();
  #syncFailure: Error | undefined;
  /** The greatest of any page in the file. */
  #generation = 0;

  constructor({ file, env, superblock, superblockSlot }: Opened) {
    this.#file = file;
    this.#env = env;
    this.#superblock = superblock;
    this.#superblockSlot = superblockSlot;
    this.pages = pageCount(clusterCount(superblock.sizeBytes, superblock.clusterBytes));
    this.#slots = new Uint8Array(this.pages);
  }

  get superblock(): Superblock {
    return this.#superblock;
  }

  get path(): string {
    return this.#file.path;
  }

  /** Writes a superblock with these changes into the other place, and syncs. */
  update(changes: Partial<Pick<Superblock, "state" | "term">>): Promise<void> {
    const update = this.#updates.then(() => this.#update(changes));
    this.#updates = update.catch(() => undefined);
    return update;
  }

  /** As `update`, into both places: whichever of them is lost later, the term is not. */
  async updateBoth(changes: Partial<Pick<Superblock, "state" | "term">>): Promise<void> {
    await Promise.all([this.update(changes), this.update(changes)]);
  }

  async #update(changes: Partial<Pick<Superblock, "state" | "term">>): Promise<void> {
    const next = { ...this.#superblock, ...changes, generation: this.#superblock.generation + 1 };
    const slot: Slot = this.#superblockSlot === 0 ? 1 : 0;
    await this.#file.write(slot * PAGE_BYTES, encodeSuperblock(next));
    await this.sync();
    this.#superblock = next;
    this.#superblockSlot = slot;
  }

  /**
   * Visits every page that has any bit, in order. With `rewrite`, what was loaded is written again, to be synced by the
   * caller: after a kill it may have been in the page cache only, and a write-back that failed may have made it look clean.
   */
  async scan(visit: (page: number, bits: Uint8Array) => void, rewrite: boolean): Promise<void> {
    const torn: { page: number; loaded: LoadedPage }[] = [];
    const holes: HoleEnds = [0, 0];
    for (let page = 0; page < this.pages; page += SCAN_PAGES) {
      const count = Math.min(SCAN_PAGES, this.pages - page);
      const run = { page, count, holes };
      const slots = await Promise.all([this.#readSlot(run, 0), this.#readSlot(run, 1)]);
      if (slots[0] === undefined && slots[1] === undefined) continue;
      const [a, b] = [slots[0] ?? new Uint8Array(count * PAGE_BYTES), slots[1] ?? new Uint8Array(count * PAGE_BYTES)];
      for (let index = 0; index < count; index++) {
        const range = [index * PAGE_BYTES, (index + 1) * PAGE_BYTES] as const;
        const loaded = this.#decode([a.subarray(...range), b.subarray(...range)], page + index);
        this.#generation = Math.max(this.#generation, loaded.generation);
        if (loaded.generation === 0) continue;
        // The slot that was being written when it tore is the one to write to next.
        this.#slots[page + index] = loaded.torn ? 1 - loaded.slot : loaded.slot;
        visit(page + index, loaded.bits);
        if (loaded.torn) torn.push({ page: page + index, loaded });
        else if (rewrite) {
          const bytes = encodePage(loaded.bits, page + index, loaded.generation);
          await this.#file.write(this.#offset(page + index, loaded.slot), bytes);
        }
      }
    }
    // With a new generation, which is known only now.
    await this.writePages(torn.map(({ page, loaded }) => [page, loaded.bits] as const));
    if (torn.length === 0 && !rewrite) return;
    await this.sync();
    for (const { page } of torn) this.settle(page);
  }

  /**
   * Writes pages, with a generation of their own, each to the slot that does not hold it. It does not hold before
   * `settle`. False: there were none.
   */
  async writePages(pages: Iterable<readonly [page: number, bits: Uint8Array]>): Promise<boolean> {
    let [from, batch]: [number, Buffer[]] = [0, []];
    for (const [page, bits] of pages) {
      if (batch.length === 0) this.#generation += 1;
      const joins = page === from + batch.length && this.#slots[page] === this.#slots[from];
      if (batch.length > 0 && (!joins || batch.length === WRITE_PAGES_MAX))
        await this.#writeBatch(from, batch.splice(0));
      if (batch.length === 0) from = page;
      batch.push(encodePage(bits, page, this.#generation));
    }
    if (batch.length === 0) return false;
    await this.#writeBatch(from, batch);
    return true;
  }

  #writeBatch(from: number, batch: readonly Buffer[]): Promise<void> {
    const slot: Slot = this.#slots[from] === 0 ? 1 : 0;
    const [only] = batch;
    return this.#file.write(
      this.#offset(from, slot),
      only !== undefined && batch.length === 1 ? only : Buffer.concat(batch),
    );
  }

  /** The page that was written has been synced. */
  settle(page: number): void {
    this.#slots[page] = this.#slots[page] === 0 ? 1 : 0;
  }

  /** One that has failed is not tried again: the kernel may have dropped what it should have made durable. */
  async sync(): Promise<void> {
    if (this.#syncFailure !== undefined && !this.#env.chaos.on("cor/retry-sync")) throw this.#syncFailure;
    try {
      await this.#file.dataSync();
    } catch (error) {
      this.#syncFailure ??= error instanceof Error ? error : new Error(String(error));
      throw error;
    }
    // One that began earlier may have failed meanwhile, and have been told of pages that were ours.
    if (this.#syncFailure !== undefined && !this.#env.chaos.on("cor/retry-sync")) throw this.#syncFailure;
  }

  /** The bits of a page, from the page cache; `undefined`: use `readPage`. */
  readPageNow(page: number): Uint8Array | undefined {
    const bytes = new Uint8Array(2 * PAGE_BYTES);
    const slots = [bytes.subarray(0, PAGE_BYTES), bytes.subarray(PAGE_BYTES)] as const;
    if (this.#file.readNow(this.#offset(page, 0), slots[0]) < 0) return undefined;
    if (this.#file.readNow(this.#offset(page, 1), slots[1]) < 0) return undefined;
    return this.#decode(slots, page).bits;
  }

  async readPage(page: number): Promise<Uint8Array> {
    const slots = await Promise.all([this.#read(page, 0, 1), this.#read(page, 1, 1)]);
    return this.#decode(slots, page).bits;
  }

  close(): Promise<void> {
    return this.#file.close();
  }

  #decode(slots: readonly [Uint8Array, Uint8Array], page: number): LoadedPage {
    const loaded = decodePage(slots, page, this.#env.chaos.on("cor/stale-slot"));
    if (loaded !== undefined) return loaded;
    throw new OverlayRefusedError("map-corrupt", `page ${page} of ${this.path} is bad in both slots`, RESTORE);
  }

  #offset(page: number, slot: Slot): number {
    return SLOTS_OFFSET + (slot * this.pages + page) * PAGE_BYTES;
  }

  /** `undefined`: all of it is a hole. */
  async #readSlot({ page, count, holes }: PageRun, slot: Slot): Promise<Uint8Array | undefined> {
    const offset = this.#offset(page, slot);
    if (this.#file.features.extents && holes[slot] <= offset) {
      const { kind, end } = await this.#file.extentAt(offset);
      if (kind === "hole") holes[slot] = end;
    }
    return holes[slot] >= offset + count * PAGE_BYTES ? undefined : this.#read(page, slot, count);
  }

  async #read(page: number, slot: Slot, count: number): Promise<Uint8Array> {
    const bytes = new Uint8Array(count * PAGE_BYTES);
    const got = await this.#file.read(this.#offset(page, slot), bytes);
    if (got === bytes.length) return bytes;
    throw new OverlayRefusedError("map-corrupt", `${this.path} is shorter than its superblock says`, RESTORE);
  }
}
