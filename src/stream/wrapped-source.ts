/** A source behind something that looks at its reads. Everything else goes straight through. */
import type { BlockCapabilities, BlockDevice, WriteOptions } from "../block/device.ts";
import type { Extent } from "../block/extents.ts";
import type { HydrationSource } from "./hydration-parts.ts";
import type { SourceState } from "./source-session.ts";

/** `ReconnectingSource` is one. */
export type StreamSource = BlockDevice & HydrationSource;

export abstract class WrappedSource implements BlockDevice, HydrationSource {
  readonly sizeBytes: number;
  readonly capabilities: BlockCapabilities;
  protected readonly source: StreamSource;

  /** The source stays the caller's, but for `close`, which closes it. */
  constructor(source: StreamSource) {
    this.source = source;
    this.sizeBytes = source.sizeBytes;
    this.capabilities = source.capabilities;
  }

  abstract read(offset: number, into: Uint8Array): Promise<void>;

  get state(): SourceState {
    return this.source.state;
  }

  onState(listener: (state: SourceState) => void): () => void {
    return this.source.onState(listener);
  }

  readNow(): number {
    return -1;
  }

  extents(offset: number, length: number, countMax: number): Promise<Extent[]> {
    return this.source.extents(offset, length, countMax);
  }

  cache(offset: number, length: number): Promise<void> {
    return this.source.cache(offset, length);
  }

  flush(): Promise<void> {
    return this.source.flush();
  }

  writeNow(): number {
    return -1;
  }

  write(offset: number, from: Uint8Array, options?: WriteOptions): Promise<void> {
    return this.source.write(offset, from, options);
  }

  writeZeroes(offset: number, length: number, options?: WriteOptions): Promise<void> {
    return this.source.writeZeroes(offset, length, options);
  }

  discard(offset: number, length: number, options?: WriteOptions): Promise<void> {
    return this.source.discard(offset, length, options);
  }

  close(): Promise<void> {
    return this.source.close();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }
}
