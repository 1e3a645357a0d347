/**
 * `--late-open`: a disk whose image another program has open for writing, QEMU say, until its guest has moved. Its size is
 * known from the start; it can be read while it is open, and never be changed.
 */
import type { BlockCapabilities, BlockDevice } from "../../block/device.ts";
import { BlockError, checkRange } from "../../block/error.ts";
import type { Extent } from "../../block/extents.ts";
import { Serial } from "../../migrate/serial.ts";

const CAPABILITIES: BlockCapabilities = {
  ...{ readOnly: true, discard: false, fastZero: false, extents: true, rotational: false },
  blockSizes: { minimum: 1, preferred: 4096 },
};

export interface Opened {
  readonly device: BlockDevice;
  /** Closes it, with what it lies over. */
  close(): Promise<void>;
}

export class LateDevice implements BlockDevice {
  readonly sizeBytes: number;
  readonly capabilities = CAPABILITIES;
  readonly #openImage: () => Promise<Opened>;
  /** Opening and shutting: when either has ended, it is as was asked for last. */
  readonly #serial = new Serial();
  #opened: Opened | undefined;
  #closed = false;
  #underWay = 0;
  #idle: PromiseWithResolvers<void> | undefined;

  /** `openImage` may fail while somebody else has the image, and is then called again the next time. */
  constructor(sizeBytes: number, openImage: () => Promise<Opened>) {
    this.sizeBytes = sizeBytes;
    this.#openImage = openImage;
  }

  /** From now on it can be read. Rejects with what `openImage` does, and when the size is another one. Idempotent. */
  open(): Promise<void> {
    return this.#serial.run(() => this.#open());
  }

  /** Lets go of the image, once nobody reads it any more; it can be opened again. Idempotent. */
  shut(): Promise<void> {
    return this.#serial.run(() => this.#shut());
  }

  readNow(offset: number, into: Uint8Array): number {
    return this.#opened?.device.readNow(offset, into) ?? -1;
  }

  read(offset: number, into: Uint8Array): Promise<void> {
    return this.#use(offset, into.length, (device) => device.read(offset, into));
  }

  extents(offset: number, length: number, countMax: number): Promise<Extent[]> {
    return this.#use(offset, length, (device) => device.extents(offset, length, countMax));
  }

  cache(offset: number, length: number): Promise<void> {
    return this.#use(offset, length, (device) => device.cache(offset, length));
  }

  /** Nothing is written here; QEMU flushes what it has written before it lets go of the image. */
  async flush(): Promise<void> {}

  writeNow(): number {
    return -1;
  }

  write(): Promise<void> {
    return this.#refuse();
  }

  writeZeroes(): Promise<void> {
    return this.#refuse();
  }

  discard(): Promise<void> {
    return this.#refuse();
  }

  close(): Promise<void> {
    this.#closed = true;
    return this.shut();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  async #open(): Promise<void> {
    if (this.#closed) throw new BlockError("shutting-down", "the disk is closed");
    if (this.#opened !== undefined) return;
    const opened = await this.#openImage();
    if (opened.device.sizeBytes === this.sizeBytes) {
      this.#opened = opened;
      return;
    }
    await opened.close();
    const sizes = `from ${this.sizeBytes} to ${opened.device.sizeBytes} bytes`;
    throw new BlockError("io", `the image has changed its size since it was looked at, ${sizes}`);
  }

  async #shut(): Promise<void> {
    const opened = this.#opened;
    this.#opened = undefined;
    if (this.#underWay > 0) {
      this.#idle ??= Promise.withResolvers<void>();
      await this.#idle.promise;
    }
    await opened?.close();
  }

  async #use<T>(offset: number, length: number, act: (device: BlockDevice) => Promise<T>): Promise<T> {
    checkRange(offset, length, this.sizeBytes);
    if (this.#opened === undefined) throw new BlockError("io", "the image is still in use by the guest's own QEMU");
    this.#underWay += 1;
    try {
      return await act(this.#opened.device);
    } finally {
      this.#underWay -= 1;
      if (this.#underWay === 0) {
        this.#idle?.resolve();
        this.#idle = undefined;
      }
    }
  }

  async #refuse(): Promise<never> {
    throw new BlockError("read-only", "the image belongs to the guest's own QEMU");
  }
}
