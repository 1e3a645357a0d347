/**
 * One overlay on a simulated host, over a source that stays: its lives, and what ends them. Production's own functions make
 * and open it. Raw unless told otherwise; `device` is raw on a block device, which was something else before.
 */
import type { BlockDevice } from "../../src/block/device.ts";
import { MemoryDevice } from "../../src/block/memory.ts";
import { OverlayRefusedError } from "../../src/cor/errors.ts";
import { PAGE_CLUSTERS } from "../../src/cor/map-format.ts";
import type { Overlay } from "../../src/cor/overlay.ts";
import { createOverlay, openOverlay } from "../../src/cor/overlay-files.ts";
import { chooseFormat, type ImageFormat, type OverlayFormat, openImage } from "../../src/image/format.ts";
import type { Image } from "../../src/image/image.ts";
import { createRawDeviceOverlay, openRawDeviceOverlay } from "../../src/image/raw-device-overlay.ts";
import { Oracle } from "./oracle.ts";
import { type BackingHabits, SimBacking } from "./sim-backing.ts";
import { type SimEnv, type SimHost, SimWorld } from "./sim-env.ts";

const IDENTITY = "disk A";
const CELL_BYTES = 128;
const SECTOR_BYTES = 512;
/** Of a device. */
const RECORDS = "/var/vda";

/** The tables say what they must not say. */
export class TablesError extends Error {
  override readonly name = "TablesError";
}

/** A process that has the overlay open. */
export interface Life {
  readonly env: SimEnv;
  readonly overlay: Overlay;
  readonly backing: SimBacking;
  readonly background: SimBacking;
}

function onDeviceFormat(headBytes: number): OverlayFormat {
  const head = { head: `${RECORDS}.head`, headBytes };
  return {
    create: (env, options) => createRawDeviceOverlay(env, { ...options, ...head }),
    open: (env, options) => openRawDeviceOverlay(env, { ...options, ...head }),
  };
}

function overlaysOf({ overlay, name }: ImageFormat): OverlayFormat {
  if (overlay === undefined) throw new Error(`${name} has no overlays`);
  return overlay;
}

/** What the device held before: never to be read again. */
function staleBytes(length: number): Uint8Array {
  return Uint8Array.from({ length }, (_, index) => 0xa5 ^ (index & 0x0f));
}

export class Destination {
  readonly world: SimWorld;
  readonly host: SimHost;
  readonly oracle: Oracle;
  readonly habits: BackingHabits;
  readonly sizeBytes: number;
  readonly clusterBytes: number;
  /** Where the part of the disk begins that the guest uses, and the oracle knows. What is before is a hole. */
  readonly regionOffset: number;
  readonly format: ImageFormat;
  readonly #overlayFormat: OverlayFormat;
  /** Of an image with tables. */
  readonly imageClusterBytes: number;
  readonly #path: string;
  /** What map and log are named after. */
  readonly #records: string;
  readonly #content: MemoryDevice;
  readonly #logHalfRecords: number;
  readonly #fetchUnitBytes: number;
  #boot = 1;

  constructor(seed: number, mutants: readonly string[] = [], formatName = "raw") {
    const onDevice = formatName === "device";
    this.format = chooseFormat("", onDevice ? "raw" : formatName).format;
    this.#path = onDevice ? "/dev/vda" : `/vm/disk.${formatName}`;
    this.#records = onDevice ? RECORDS : this.#path;
    this.world = new SimWorld(seed);
    const { rng } = this.world;
    this.host = this.world.host("destination");
    this.host.chaos = new Set(mutants);
    this.host.disk.behaviour.filesRemember = false;
    this.clusterBytes = rng.pick([512, 512, 1024, 4096]);
    // Now and then around the edge of a page of the map.
    const before = this.clusterBytes === 512 && rng.chance(0.02) ? PAGE_CLUSTERS - 2 : 0;
    this.regionOffset = before * this.clusterBytes;
    const clusters = rng.integer(1, 6);
    const cut = rng.chance(0.5) ? 0 : CELL_BYTES * rng.integer(1, this.clusterBytes / CELL_BYTES - 1);
    // Only raw images end within a sector.
    const wholeSectors = !this.format.flat || (onDevice && clusters === 1);
    const regionBytes = clusters * this.clusterBytes - (wholeSectors ? cut - (cut % SECTOR_BYTES) : cut);
    this.sizeBytes = this.regionOffset + regionBytes;
    if (onDevice) this.host.disk.add(this.#path, staleBytes(this.sizeBytes), "block-device");
    this.#overlayFormat = onDevice ? onDeviceFormat(this.#drawHeadBytes()) : overlaysOf(this.format);
    const zeroes = new Set<number>();
    for (let cluster = 0; cluster < clusters; cluster++) if (rng.chance(0.2)) zeroes.add(cluster);
    const cellsEach = this.clusterBytes / CELL_BYTES;
    this.oracle = new Oracle({
      sizeBytes: regionBytes,
      cellBytes: CELL_BYTES,
      zeroAtFirst: (cell) => zeroes.has(Math.floor(cell / cellsEach)),
    });
    this.#content = new MemoryDevice({ sizeBytes: this.sizeBytes, pageBytes: this.clusterBytes });
    this.#content.writeNow(this.regionOffset, this.oracle.baseContent());
    for (const cluster of zeroes) this.#makeHole(cluster);
    this.#logHalfRecords = rng.pick([2, 3, 8]);
    this.#fetchUnitBytes = this.clusterBytes * rng.pick([1, 2, 8]);
    this.imageClusterBytes = this.format.name === "qcow2" ? rng.pick([512, 1024, 4096]) : 4096;
    this.habits = { latencyMs: rng.pick([0.5, 5, 50]), error: rng.pick([0, 0, 0.05, 0.3]) };
  }

  #drawHeadBytes(): number {
    const sizes = [512, 1024, 1536, 4096].filter((bytes) => bytes <= this.sizeBytes);
    return this.world.rng.pick(sizes);
  }

  /** Some zeroes of the source are holes, and some are only zeroes. */
  #makeHole(cluster: number): void {
    if (this.world.rng.chance(0.3)) return;
    const offset = this.regionOffset + cluster * this.clusterBytes;
    void this.#content.discard(offset, Math.min(this.clusterBytes, this.sizeBytes - offset));
  }

  async create(): Promise<void> {
    const env = this.host.start();
    const { sizeBytes, clusterBytes, imageClusterBytes } = this;
    const path = this.#path;
    const createImage = (uuid: Uint8Array, begun: boolean): Promise<void> =>
      this.#overlayFormat.create(env, { path, sizeBytes, uuid, begun, imageClusterBytes });
    await createOverlay(env, {
      path: this.#records,
      ...{ sizeBytes, clusterBytes, sourceIdentity: IDENTITY, createImage },
    });
  }

  /** `create`, which may have been interrupted before: true when it was found finished. */
  async createOrFind(): Promise<boolean> {
    try {
      await this.world.scheduler.complete(this.create());
      return false;
    } catch (error) {
      if (error instanceof OverlayRefusedError && error.code === "exists") return true;
      throw error;
    }
  }

  async open(): Promise<Life> {
    const { rng, scheduler } = this.world;
    const env = this.host.start();
    const session = { content: this.#content, scheduler, rng, process: env.process, habits: this.habits };
    const [backing, background] = [new SimBacking(session), new SimBacking(session)];
    const overlay = await openOverlay(env, {
      ...{ path: this.#records, backing, background, sourceIdentity: IDENTITY, bootId: `boot ${this.#boot}` },
      ...{ logHalfRecords: this.#logHalfRecords, fetchUnitBytes: this.#fetchUnitBytes },
      openStore: ({ sizeBytes, uuid, clusterBytes, state }) =>
        this.#overlayFormat.open(env, { path: this.#path, sizeBytes, uuid, clusterBytes, state }),
    });
    return { env, overlay, backing, background };
  }

  async openPlain(): Promise<Image> {
    const env = this.host.start();
    return (await openImage(env, { path: this.#path, readOnly: true, format: this.format.name })).image;
  }

  /** What the image's tables come to, for a process that only looks. Throws `TablesError`. */
  async checkTables(lostSpace: "may-be" | "must-not-be"): Promise<void> {
    const { check } = this.format;
    if (check === undefined) return;
    const report = await this.world.scheduler.complete(check(this.host.start(), { path: this.#path }));
    this.host.kill();
    const { corruptions, checkErrors, leaks, badEntries } = report;
    if (corruptions + checkErrors > 0) {
      throw new TablesError(`${corruptions} corruptions, ${checkErrors} errors: ${JSON.stringify(badEntries)}`);
    }
    if (leaks > 0 && lostSpace === "must-not-be") throw new TablesError(`${leaks} clusters are lost`);
  }

  kill(): void {
    this.host.kill();
  }

  losePower(): void {
    this.host.losePower();
    this.#boot += 1;
  }

  /** What the guest's part of the disk holds; with `gently`, without a fetch of what is missing. */
  async contents(device: BlockDevice, gently: Overlay | undefined): Promise<Uint8Array> {
    const bytes = new Uint8Array(this.oracle.sizeBytes);
    if (gently === undefined) {
      await device.read(this.regionOffset, bytes);
      return bytes;
    }
    for (let at = 0; at < bytes.length; ) {
      const [run] = await gently.presenceExtents(this.regionOffset + at, bytes.length - at, 1);
      if (run === undefined || run.length === 0) throw new Error("no presence was told");
      const part = bytes.subarray(at, at + run.length);
      await (run.local ? gently : this.#content).read(this.regionOffset + at, part);
      at += run.length;
    }
    return bytes;
  }

  /** The guest's part, as a disk of its own. */
  region(device: BlockDevice): BlockDevice {
    if (this.regionOffset === 0) return device;
    const by = this.regionOffset;
    return {
      ...{ sizeBytes: this.oracle.sizeBytes, capabilities: device.capabilities },
      readNow: (offset, into) => device.readNow(offset + by, into),
      read: (offset, into) => device.read(offset + by, into),
      writeNow: (offset, from) => device.writeNow(offset + by, from),
      write: (offset, from, options) => device.write(offset + by, from, options),
      writeZeroes: (offset, length, options) => device.writeZeroes(offset + by, length, options),
      discard: (offset, length, options) => device.discard(offset + by, length, options),
      cache: (offset, length) => device.cache(offset + by, length),
      flush: () => device.flush(),
      extents: (offset, length, countMax) => device.extents(offset + by, length, countMax),
      close: () => device.close(),
      [Symbol.asyncDispose]: () => device.close(),
    };
  }
}
