/**
 * Byte streams to peers: TCP, unix sockets, the simulator's network. One reader, one writer.
 */

export type Address =
  | { readonly kind: "tcp"; readonly host: string; readonly port: number }
  | { readonly kind: "unix"; readonly path: string };

/** Receives what a stream brings. Methods must not throw. */
export interface ByteSink {
  /** `bytes` are valid until the call returns: they live in a receive buffer that is used again. */
  onBytes(bytes: Uint8Array): void;
  /**
   * Where the next bytes are wanted, for whoever can use a long run of them nowhere else; not empty. A stream that can
   * puts them there and passes just these to `onBytes`, so that nothing needs to be copied; one that cannot (TLS, a
   * simulated one) passes any bytes as ever. Asked again after every `onBytes`; the memory stays the sink's.
   */
  receiveInto?(): Uint8Array | undefined;
  /** The peer has finished sending. Not called while the stream is paused. */
  onEnd(): void;
  /** The stream is gone; called exactly once, last. `error` is absent after an orderly close. */
  onClose(error?: Error): void;
  /** `pendingBytes` has come down to zero after having been above it. */
  onDrain(): void;
}

export interface ByteStream {
  /** For messages: "127.0.0.1:40112", "unix". */
  readonly peer: string;
  /** Bytes handed to `write` that the kernel has not taken yet. */
  readonly pendingBytes: number;
  /** Begins delivery to `sink`; may be called again to hand the stream to another sink. */
  attach(sink: ByteSink): void;
  /**
   * Queues `bytes`, in order. The buffer belongs to the stream until `release` is called, which happens during the call
   * when the kernel takes everything at once. `release` is called exactly once; for what is still queued when the stream
   * is lost, after `onClose`, so that nobody takes it for room to send more.
   */
  write(bytes: Uint8Array, release?: () => void): void;
  /**
   * Absent, or without effect: it cannot be done. From now on the kernel takes hardly more than so many bytes that it has not
   * sent yet: what is urgent waits behind no more than those and what is on the line.
   */
  keepShort?(unsentBytes: number): void;
  /** Stops delivery. Bytes already on their way to `onBytes` may still arrive. */
  pause(): void;
  resume(): void;
  /** Sends what is queued, then closes our direction. */
  end(): void;
  /** Drops everything at once. `onClose` follows. Idempotent. */
  destroy(error?: Error): void;
}

export interface Links {
  /** Opens a connection. Rejects with a `FileError`-like error whose `code` is the POSIX name. */
  dial(address: Address, signal?: AbortSignal): Promise<ByteStream>;
}

/** `host:port` (IPv6 in brackets) or `unix:/path`, for messages. */
export function formatAddress(address: Address): string {
  if (address.kind === "unix") return `unix:${address.path}`;
  const host = address.host.includes(":") ? `[${address.host}]` : address.host;
  return `${host}:${address.port}`;
}
