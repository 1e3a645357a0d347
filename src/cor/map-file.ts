/**
 * `IMAGE.map` as a file: superblocks, and pages of presence bits in two slots. Knows which slot holds each page; knows
 * nothing of what the bits mean. A page is written to the slot that does not hold it, with a generation greater than any
 * in the file, and holds from `settle` on, which the caller calls after a sync.
 */
import { dirname } from "node:path";
import type { Env } from "../env/env.ts";
import type { File } from "../env/files.ts";
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
const RESTORE = "restore both files from a backup, or remove them and copy the disk again";

/** Makes a map without a single bit, in state "new"; durable with its directory before this resolves. */
export async function createMap(env: MapEnv, path: string, fields: NewMap): Promise<void> {
  const first = encodeSuperblock({ ...fields, state: "new", generation: 1 });
  const pages = pageCount(clusterCount(fields.sizeBytes, fields.clusterBytes));
  const file = await env.files.open({ path, writable: true, create: true, noFollow: true });
  try {
    await file.truncate(SLOTS_OFFSET + 2 * pages * PAGE_BYTES);
    await file.write(0, first);
    await file.dataSync();
    await env.files.syncDirectory(dirname(path));
  } catch (error) {
    await env.files.unlink(path).catch(() => undefined);
    throw error;
  } finally {
    await file.close();
  }
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

export class MapFile {
  readonly pages: number;
  readonly #file: File;
  readonly #env: MapEnv;
  readonly #slots: Uint8Array;
  #superblock: Superblock;
  #superblockSlot: Slot;
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
  async update(changes: Partial<Pick<Superblock, "state" | "term">>): Promise<void> {
    const next = { ...this.#superblock, ...changes, generation: this.#superblock.generation + 1 };
    const slot: Slot = this.#superblockSlot === 0 ? 1 : 0;
    await this.#file.write(slot * PAGE_BYTES, encodeSuperblock(next));
    await this.#file.dataSync();
    this.#superblock = next;
    this.#superblockSlot = slot;
  }

  /**
   * Visits every page that has any bit, in order. With `rewrite`, what was loaded is written again, to be synced by the
   * caller: after a kill it may have been in the page cache only, and a write-back that failed may have made it look clean.
   */
  async scan(visit: (page: number, bits: Uint8Array) => void, rewrite: boolean): Promise<void> {
    const torn: { page: number; loaded: LoadedPage }[] = [];
    for (let page = 0; page < this.pages; page += SCAN_PAGES) {
      const count = Math.min(SCAN_PAGES, this.pages - page);
      const slots = await Promise.all([this.#readSlot(page, 0, count), this.#readSlot(page, 1, count)]);
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
    if (torn.length > 0) this.nextGeneration();
    for (const { page, loaded } of torn) await this.writePage(page, loaded.bits);
    if (torn.length === 0 && !rewrite) return;
    await this.sync();
    for (const { page } of torn) this.settle(page);
  }

  /** Begins a set of page writes: they share one generation. */
  nextGeneration(): void {
    this.#generation += 1;
  }

  /** Writes a page to the slot that does not hold it. It does not hold before `settle`. */
  async writePage(page: number, bits: Uint8Array): Promise<void> {
    const slot: Slot = this.#slots[page] === 0 ? 1 : 0;
    await this.#file.write(this.#offset(page, slot), encodePage(bits, page, this.#generation));
  }

  /** The page that was written has been synced. */
  settle(page: number): void {
    this.#slots[page] = this.#slots[page] === 0 ? 1 : 0;
  }

  sync(): Promise<void> {
    return this.#file.dataSync();
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
  async #readSlot(page: number, slot: Slot, count: number): Promise<Uint8Array | undefined> {
    const offset = this.#offset(page, slot);
    const extent = this.#file.features.extents ? await this.#file.extentAt(offset) : undefined;
    if (extent?.kind === "hole" && extent.end >= offset + count * PAGE_BYTES) return undefined;
    return this.#read(page, slot, count);
  }

  async #read(page: number, slot: Slot, count: number): Promise<Uint8Array> {
    const bytes = new Uint8Array(count * PAGE_BYTES);
    const got = await this.#file.read(this.#offset(page, slot), bytes);
    if (got === bytes.length) return bytes;
    throw new OverlayRefusedError("map-corrupt", `${this.path} is shorter than its superblock says`, RESTORE);
  }
}
