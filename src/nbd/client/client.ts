/** An NBD export as a block device: what the rest of the program sees of a session with a server. */
import type { BlockCapabilities, BlockDevice, WriteOptions, ZeroOptions } from "../../block/device.ts";
import { BlockError, checkRange } from "../../block/error.ts";
import type { Extent } from "../../block/extents.ts";
import { AlignedDevice, cutToRange } from "./aligned-device.ts";
import type { NbdConnection } from "./connection.ts";
import type { ConnectionLostError } from "./errors.ts";
import type { ExportInfo } from "./export-info.ts";
import type { Dialect, Negotiated } from "./negotiate.ts";
import { RemoteDevice, type StatusOptions } from "./remote-device.ts";
import type { ConnectionState } from "./states.ts";
import type { StatusExtent } from "./status-reply.ts";

/**
 * All of `BlockDevice`, plus what only a server has. Make one with `connectNbd` or `openNbd`.
 *
 * Failures are `BlockError`s; when the link is lost, all that was pending and all that comes later fails with its
 * subclass `ConnectionLostError` (code "io"), and the client is of no further use.
 */
export class NbdClient implements BlockDevice {
  /** What the server told of the export. */
  readonly info: ExportInfo;
  readonly dialect: Dialect;
  /** TLS protects the session. */
  readonly secure: boolean;
  /** Names of the metadata contexts that `blockStatus` can ask about. */
  readonly contexts: ReadonlySet<string>;
  readonly sizeBytes: number;
  readonly capabilities: BlockCapabilities;
  readonly #connection: NbdConnection;
  readonly #remote: RemoteDevice;
  readonly #device: BlockDevice;

  constructor(connection: NbdConnection, negotiated: Negotiated) {
    this.info = negotiated.info;
    this.dialect = negotiated.dialect;
    this.secure = negotiated.secure;
    this.contexts = new Set(negotiated.contexts.keys());
    this.sizeBytes = negotiated.info.sizeBytes;
    this.#connection = connection;
    this.#remote = new RemoteDevice(connection, negotiated);
    this.#device = negotiated.info.blockSizes.minimum > 1 ? new AlignedDevice(this.#remote) : this.#remote;
    this.capabilities = this.#device.capabilities;
  }

  /** "closed" is an end in order; "dead" a loss. */
  get state(): ConnectionState {
    return this.#connection.state;
  }

  /** Requests that were sent and not answered. */
  get inFlight(): number {
    return this.#connection.inFlight;
  }

  /** See `NbdConnection.onLost`. */
  onLost(listener: (error: ConnectionLostError) => void): () => void {
    return this.#connection.onLost(listener);
  }

  /** Breaks the link at once, failing whatever is pending. Idempotent. */
  drop(why: string): void {
    this.#connection.drop(why);
  }

  readNow(offset: number, into: Uint8Array): number {
    return this.#device.readNow(offset, into);
  }

  read(offset: number, into: Uint8Array): Promise<void> {
    return this.#device.read(offset, into);
  }

  writeNow(offset: number, from: Uint8Array): number {
    return this.#device.writeNow(offset, from);
  }

  write(offset: number, from: Uint8Array, options?: WriteOptions): Promise<void> {
    return this.#device.write(offset, from, options);
  }

  writeZeroes(offset: number, length: number, options?: ZeroOptions): Promise<void> {
    return this.#device.writeZeroes(offset, length, options);
  }

  discard(offset: number, length: number, options?: WriteOptions): Promise<void> {
    return this.#device.discard(offset, length, options);
  }

  cache(offset: number, length: number): Promise<void> {
    return this.#device.cache(offset, length);
  }

  flush(): Promise<void> {
    return this.#device.flush();
  }

  extents(offset: number, length: number, countMax: number): Promise<Extent[]> {
    return this.#device.extents(offset, length, countMax);
  }

  /**
   * What the metadata context `context` says of the range, from `offset` on without gaps: at least one extent, together
   * at most `length` bytes. `BlockError("not-supported")` when the server did not agree to the context.
   */
  async blockStatus(
    context: string,
    offset: number,
    length: number,
    options: StatusOptions = {},
  ): Promise<StatusExtent[]> {
    checkRange(offset, length, this.sizeBytes);
    const block = this.info.blockSizes.minimum;
    const skip = offset % block;
    const rest = (offset + length) % block;
    const asked = skip + length + (rest === 0 ? 0 : block - rest);
    const found = cutToRange(await this.#remote.blockStatus(context, offset - skip, asked, options), skip, length);
    if (found.length === 0) throw new BlockError("io", "the server's block status ends before the range begins");
    return found;
  }

  /** Finishes what is under way, tells the server, and waits for the end. Idempotent. */
  close(): Promise<void> {
    return this.#device.close();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }
}
