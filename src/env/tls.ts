/** TLS over a byte stream, for whoever speaks a protocol that upgrades in mid-stream. The real one is `src/os/tls.ts`. */
import type { ByteStream } from "./links.ts";

export interface TlsServer {
  /**
   * Takes `stream` over (its sink no longer receives anything), answers the handshake and resolves to the protected
   * stream, not yet attached. Rejects, with `stream` destroyed, when the peer does not prove itself.
   */
  accept(stream: ByteStream): Promise<ByteStream>;
}

export interface TlsClient {
  /** As `TlsServer.accept`, for the side that dialled; verifies the server. */
  connect(stream: ByteStream): Promise<ByteStream>;
}
