/**
 * A raw image on a block device as the store of an overlay. A device has no room behind the disk for a trailer, and is not
 * made for the overlay, but was something else before. So until it is complete, its first sector is a **mark**, which binds it
 * to its map as the trailer binds a file, and the disk's first 128 KiB are in a file beside the map (`held-head.ts`).
 *
 * | head file | length | |
 * | --- | --- | --- |
 * | 0 | 131072 | the first bytes of the disk |
 * | 131072 | 512 | the mark, which is as the trailer of a file (`raw-overlay.ts`) |
 *
 * The file is there from before the mark until after it: as long as it is there, the device is no disk.
 */
import { dirname } from "node:path";
import type { Env } from "../env/env.ts";
import { type File, FileError } from "../env/files.ts";
import { blockErrorFrom, ImageOpenError, imageOpenErrorFrom } from "./errors.ts";
import { HeldHead, MARK_BYTES } from "./held-head.ts";
import { encodeTrailer, type OpenRawOverlayOptions, type RawOverlayOptions, RawOverlayStore } from "./raw-overlay.ts";

type DeviceEnv = Pick<Env, "files"> & Partial<Pick<Env, "chaos">>;

/** Where most of what the kernel or a VMM looks for begins. */
const HEAD_BYTES = 128 * 1024;
/** Of the page cache. */
const PAGE_BYTES = 4096;

interface HeadPlace {
  /** The head's file. */
  readonly head: string;
  /** Default: 128 KiB. */
  readonly headBytes?: number;
}

type Place = RawOverlayOptions & HeadPlace;

/** Begins a disk on the device, whatever is on it; durable when resolved. Throws `ImageOpenError`. */
export async function createRawDeviceOverlay(env: Pick<Env, "files">, options: Place): Promise<void> {
  const { path, sizeBytes, headBytes = HEAD_BYTES } = options;
  if (sizeBytes < headBytes) throw tooSmall(path, sizeBytes);
  let device: File | undefined;
  try {
    device = await openDevice(env, options, { mode: "exclusive", doing: "create" });
    await makeHead(env, options);
    // Whatever began here before is gone.
    const start = new Uint8Array(headBytes);
    start.set(encodeTrailer(options));
    await device.write(0, start);
    await device.dataSync();
  } catch (error) {
    throw imageOpenErrorFrom(error, path, "create");
  } finally {
    await device?.close();
  }
}

/** Opens and locks the device. Throws `ImageOpenError` when it is not the one that the map was made for. */
export async function openRawDeviceOverlay(
  env: DeviceEnv,
  options: OpenRawOverlayOptions & HeadPlace,
): Promise<RawDeviceStore> {
  const { path, head, headBytes = HEAD_BYTES, sizeBytes, clusterBytes, state } = options;
  const complete = state === "complete";
  const opened: File[] = [];
  try {
    const held = await openHead(env, head);
    if (held !== undefined) opened.push(held);
    const device = await openDevice(env, options, { mode: held === undefined ? "exclusive" : "alone", doing: "open" });
    opened.push(device);
    const parts = { sizeBytes, clusterBytes, asOnDisk: false, retrySync: env.chaos?.on("cor/retry-sync") ?? false };
    if (held === undefined) {
      if (!complete) throw notBound(path, head);
      // It must not come back with the power.
      await env.files.syncDirectory(dirname(head));
      return new RawDeviceStore(device, parts);
    }
    if (!(await carries(held, headBytes, options))) throw notBound(path, head);
    if (!(await carries(device, 0, options))) {
      if (!(complete && (await isLanding(device, held, headBytes)))) throw notBound(path, head);
      // What the head holds from now on will not be there.
      await device.write(0, encodeTrailer(options));
      await device.dataSync();
    }
    const remove = async (): Promise<void> => {
      await env.files.unlink(head);
      await env.files.syncDirectory(dirname(head));
    };
    return new RawDeviceStore(new HeldHead(device, held, { headBytes, remove }), parts);
  } catch (error) {
    for (const file of opened) await file.close();
    throw imageOpenErrorFrom(error, path);
  }
}

export class RawDeviceStore extends RawOverlayStore {
  readonly #file: File;

  /** Takes `file` over. */
  constructor(file: File, parts: ConstructorParameters<typeof RawOverlayStore>[1]) {
    super(file, parts);
    this.#file = file;
  }

  /**
   * Where the device has a command for zeroes, it is quicker than a look at what is there. Where it has none, a thin volume
   * should not be filled with zeroes. What the page cache says is not what the device has: a sync may have failed in an
   * earlier life, and then something else is below the zeroes.
   */
  protected override async isHole(offset: number, length: number): Promise<boolean> {
    if (this.#file.features.zeroRange || offset % PAGE_BYTES > 0 || length % PAGE_BYTES > 0) return false;
    if (!(await this.#file.dropClean?.(offset, length))) return false;
    return await this.readsAsZeroes(offset, length);
  }

  override async complete(): Promise<void> {
    await this.flush();
    try {
      if (this.#file instanceof HeldHead) await this.#file.land();
      await this.#file.lock("exclusive");
    } catch (error) {
      throw blockErrorFrom(error);
    }
  }
}

async function openDevice(
  { files }: Pick<Env, "files">,
  { path, sizeBytes }: Place,
  { mode, doing }: { readonly mode: "alone" | "exclusive"; readonly doing: "create" | "open" },
): Promise<File> {
  // Volume managers name devices by symbolic links.
  const device = await files.open({ path, writable: true });
  try {
    if (device.kind !== "block-device")
      throw new FileError("EINVAL", `${path}: it is no block device any more (EINVAL)`);
    await device.lock(mode);
    const deviceBytes = await device.sizeBytes();
    if (deviceBytes < sizeBytes) throw tooLarge(path, sizeBytes, { deviceBytes, doing });
    return device;
  } catch (error) {
    await device.close();
    throw error;
  }
}

/** Its space is there when it is made: it is on another file system than the disk. */
async function makeHead({ files }: Pick<Env, "files">, options: Place): Promise<void> {
  const { head: path, headBytes = HEAD_BYTES } = options;
  if (await files.exists(path)) await files.unlink(path);
  const file = await files.open({ path, writable: true, create: true, noFollow: true });
  try {
    await file.write(0, new Uint8Array(headBytes));
    await file.write(headBytes, encodeTrailer(options));
    await file.dataSync();
  } finally {
    await file.close();
  }
  await files.syncDirectory(dirname(path));
}

async function openHead({ files }: Pick<Env, "files">, path: string): Promise<File | undefined> {
  try {
    return await files.open({ path, writable: true, noFollow: true });
  } catch (error) {
    if (error instanceof FileError && error.code === "ENOENT") return undefined;
    throw error;
  }
}

async function carries(file: File, offset: number, options: RawOverlayOptions): Promise<boolean> {
  const bytes = Buffer.alloc(MARK_BYTES);
  return (await file.read(offset, bytes)) === MARK_BYTES && bytes.equals(encodeTrailer(options));
}

/** The mark was going when the power went: all but it has the head's contents. */
async function isLanding(device: File, head: File, headBytes: number): Promise<boolean> {
  const [there, here] = [Buffer.alloc(headBytes), Buffer.alloc(headBytes)];
  await Promise.all([device.read(0, there), head.read(0, here)]);
  return there.subarray(MARK_BYTES).equals(here.subarray(MARK_BYTES));
}

function notBound(path: string, head: string): ImageOpenError {
  const why = `what is on the device, and in ${head}, is not the copy that was begun`;
  const hint = "restore the device and its records together, or begin anew";
  return new ImageOpenError("not-an-image", path, { why, hint });
}

function tooSmall(path: string, sizeBytes: number): ImageOpenError {
  const why = `a disk of ${sizeBytes} bytes is too small to be brought to a device`;
  return new ImageOpenError("bad-geometry", path, { doing: "create", why, hint: "bring it to a file" });
}

function tooLarge(
  path: string,
  sizeBytes: number,
  { deviceBytes, doing }: { readonly deviceBytes: number; readonly doing: "create" | "open" },
): ImageOpenError {
  const why = `the disk has ${sizeBytes} bytes, and the device only ${deviceBytes}`;
  const hint = "make the device as large as the disk, or larger, or choose another one";
  return new ImageOpenError("bad-geometry", path, { doing, why, hint });
}
