/** Every limit of the server, in one place. Advertised or documented; changing one changes what operators are promised. */
export interface ServerLimits {
  /** Connections in all. Further ones are closed at once. */
  readonly connectionsMax: number;
  /** Connections that have not finished their handshake; one more closes the oldest of them. */
  readonly handshakesMax: number;
  /** From the connection (or the end of the TLS handshake's TCP connection) to the first request, wall time. */
  readonly handshakeTimeoutMs: number;
  /** Options a client may send: this, and 8 more for each export (qemu-nbd --list sends 63 for 20 exports). */
  readonly optionsMax: number;
  /** Longer option data are drained and refused. */
  readonly optionBytesMax: number;
  /** Largest READ, and largest WRITE: the advertised maximum block size. */
  readonly requestBytesMax: number;
  /** Requests of one connection that are under way at the same time. */
  readonly inFlightMax: number;
  /** Payload bytes held for all connections together. */
  readonly payloadBytesMax: number;
  /** A client that takes none of its replies, or sends none of a payload, for so long is closed if others wait for memory. */
  readonly stalledMs: number;
  /**
   * A client that we are done with has so long to close its side; twice that when replies are left that it does not take,
   * and longer while it takes them.
   */
  readonly lingerMs: number;
  /** The same while the server is closing: an idle client may not notice, and a restart should not wait for it. */
  readonly closingLingerMs: number;
}

export const DEFAULT_LIMITS: ServerLimits = {
  connectionsMax: 128,
  handshakesMax: 16,
  handshakeTimeoutMs: 10_000,
  optionsMax: 32,
  optionBytesMax: 8192,
  requestBytesMax: 64 * 1024 * 1024,
  inFlightMax: 128,
  payloadBytesMax: 96 * 1024 * 1024,
  stalledMs: 15_000,
  lingerMs: 5_000,
  closingLingerMs: 250,
};

export const OPTIONS_PER_EXPORT = 8;
