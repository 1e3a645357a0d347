/**
 * A device in memory that notes every call, and that can be told to fail, to wait, or to be unable to answer at once.
 */
import type { BlockCapabilities, BlockDevice, WriteOptions, ZeroOptions } from "../../src/block/device.ts";
import type { Extent } from "../../src/block/extents.ts";
import { MemoryDevice, type MemoryDeviceOptions } from "../../src/block/memory.ts";

export type DeviceOperation =
  | "readNow"
  | "read"
  | "writeNow"
  | "write"
  | "writeZeroes"
  | "discard"
  | "cache"
  | "flush"
  | "extents";

interface Failure {
  readonly error: unknown;
  /** Calls that pass first. */
  after: number;
}

export class ScriptedDevice implements BlockDevice {
  /** Every call that reached the device, as "write 0+512 fua". */
  readonly calls: string[] = [];
  /** False: `readNow` and `writeNow` answer −1, as for data that are not in the page cache. */
  quick = true;
  /** What `extents` answers in place of the truth. */
  extentsAnswer: ((offset: number, length: number, countMax: number) => Extent[]) | undefined;
  readonly #memory: MemoryDevice;
  readonly #capabilities: BlockCapabilities;
  readonly #failures = new Map<DeviceOperation, Failure>();
  readonly #gates = new Map<DeviceOperation, PromiseWithResolvers<void>>();

  constructor(options: MemoryDeviceOptions, capabilities: Partial<BlockCapabilities> = {}) {
    this.#memory = new MemoryDevice(options);
    this.#capabilities = { ...this.#memory.capabilities, ...capabilities };
  }

  get sizeBytes(): number {
    return this.#memory.sizeBytes;
  }

  get capabilities(): BlockCapabilities {
    return this.#capabilities;
  }

  /** Every later call of `operation` throws `error`, after so many that pass. */
  fail(operation: DeviceOperation, error: unknown, after = 0): void {
    this.#failures.set(operation, { error, after });
  }

  heal(operation: DeviceOperation): void {
    this.#failures.delete(operation);
  }

  /** Later calls of `operation` are noted, and then wait until the function returned is called. */
  hold(operation: Exclude<DeviceOperation, "readNow" | "writeNow">): () => void {
    const gate = Promise.withResolvers<void>();
    this.#gates.set(operation, gate);
    return () => {
      this.#gates.delete(operation);
      gate.resolve();
    };
  }

  count(prefix: string): number {
    return this.calls.filter((call) => call.startsWith(prefix)).length;
  }

  /** What the device holds, without a trace in `calls`. */
  contents(offset: number, length: number): Buffer {
    const bytes = Buffer.alloc(length);
    if (this.#memory.readNow(offset, bytes) !== length) throw new Error("out of range");
    return bytes;
  }

  readNow(offset: number, into: Uint8Array): number {
    if (!this.quick) return -1;
    this.#note("readNow", `${offset}+${into.length}`);
    return this.#memory.readNow(offset, into);
  }

  async read(offset: number, into: Uint8Array): Promise<void> {
    await this.#begin("read", `${offset}+${into.length}`);
    await this.#memory.read(offset, into);
  }

  writeNow(offset: number, from: Uint8Array): number {
    if (!this.quick) return -1;
    this.#note("writeNow", `${offset}+${from.length}`);
    return this.#memory.writeNow(offset, from);
  }

  async write(offset: number, from: Uint8Array, options: WriteOptions = {}): Promise<void> {
    await this.#begin("write", `${offset}+${from.length}${marks(options)}`);
    await this.#memory.write(offset, from);
  }

  async writeZeroes(offset: number, length: number, options: ZeroOptions = {}): Promise<void> {
    await this.#begin("writeZeroes", `${offset}+${length}${marks(options)}`);
    await this.#memory.writeZeroes(offset, length, options);
  }

  async discard(offset: number, length: number, options: WriteOptions = {}): Promise<void> {
    await this.#begin("discard", `${offset}+${length}${marks(options)}`);
    await this.#memory.discard(offset, length);
  }

  async cache(offset: number, length: number): Promise<void> {
    await this.#begin("cache", `${offset}+${length}`);
    await this.#memory.cache(offset, length);
  }

  async flush(): Promise<void> {
    await this.#begin("flush", "");
  }

  async extents(offset: number, length: number, countMax: number): Promise<Extent[]> {
    await this.#begin("extents", `${offset}+${length} max ${countMax}`);
    return this.extentsAnswer?.(offset, length, countMax) ?? (await this.#memory.extents(offset, length, countMax));
  }

  close(): Promise<void> {
    return this.#memory.close();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  #note(operation: DeviceOperation, detail: string): void {
    this.calls.push(`${operation} ${detail}`.trim());
    const failure = this.#failures.get(operation);
    if (failure === undefined) return;
    // Whatever a test wants thrown, also what is no Error.
    if (failure.after === 0) throw failure.error;
    failure.after--;
  }

  async #begin(operation: DeviceOperation, detail: string): Promise<void> {
    this.#note(operation, detail);
    await this.#gates.get(operation)?.promise;
  }
}

function marks(options: ZeroOptions): string {
  return Object.entries(options)
    .filter(([, set]) => set === true)
    .map(([name]) => ` ${name}`)
    .join("");
}
