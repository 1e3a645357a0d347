/**
 * A disk on the source, as one session of the destination reads it. A session that pulls marks each grain as clean *before*
 * it reads it: what a guest changes afterwards is taken out again (`source-device.ts`). A session that was revoked marks
 * and reads nothing more, however late a request of it is carried out: by then the destination may hold older bytes of the
 * grain, and would take the mark for theirs.
 */
import type { BlockCapabilities, BlockDevice } from "../block/device.ts";
import { BlockError, checkRange } from "../block/error.ts";
import type { Extent } from "../block/extents.ts";
import type { Chaos } from "../env/chaos.ts";
import type { GrainSet } from "./grain-set.ts";

export interface SessionDeviceParts {
  readonly device: BlockDevice;
  /** For a session that pulls. */
  readonly clean?: GrainSet;
  readonly chaos: Chaos;
}

export class SessionDevice implements BlockDevice {
  readonly sizeBytes: number;
  readonly capabilities: BlockCapabilities;
  readonly #parts: SessionDeviceParts;
  #revoked = false;

  /** The device stays the caller's. */
  constructor(parts: SessionDeviceParts) {
    this.#parts = parts;
    this.sizeBytes = parts.device.sizeBytes;
    const { extents, rotational, blockSizes } = parts.device.capabilities;
    this.capabilities = { readOnly: true, discard: false, fastZero: false, extents, rotational, blockSizes };
  }

  /** Nothing is marked or read any more, but for what is being read. */
  revoke(): void {
    this.#revoked = true;
  }

  readNow(offset: number, into: Uint8Array): number {
    if (this.#revoked || !(offset >= 0 && offset + into.length <= this.sizeBytes)) return -1;
    this.#mark(offset, into.length);
    return this.#parts.device.readNow(offset, into);
  }

  async read(offset: number, into: Uint8Array): Promise<void> {
    this.#check(offset, into.length);
    const late = this.#parts.chaos.on("migrate/clean-bit-after-read");
    if (!late) this.#mark(offset, into.length);
    await this.#parts.device.read(offset, into);
    if (late) this.#mark(offset, into.length);
  }

  async extents(offset: number, length: number, countMax: number): Promise<Extent[]> {
    this.#check(offset, length);
    // Zeroes are told, and not read.
    this.#mark(offset, length);
    return await this.#parts.device.extents(offset, length, countMax);
  }

  async cache(offset: number, length: number): Promise<void> {
    this.#check(offset, length);
    await this.#parts.device.cache(offset, length);
  }

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

  async close(): Promise<void> {
    this.revoke();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  #mark(offset: number, length: number): void {
    this.#parts.clean?.addWithin(offset, length);
  }

  #check(offset: number, length: number): void {
    if (this.#revoked) throw new BlockError("shutting-down", "this session is over");
    checkRange(offset, length, this.sizeBytes);
  }

  async #refuse(): Promise<never> {
    throw new BlockError("read-only", "the destination only reads");
  }
}
