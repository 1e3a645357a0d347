/** How a link, or a channel in it, can fail. */

/**
 * - `reset`: the peer reset the channel. `restarted`: the peer's process, or ours, is not the one that had the channel.
 * - `closed`: the link was closed, by either side. `lost`: the connection went away; the link may come back.
 * - `refused`: the peer does not want this link, and will not.
 * - `busy`: not now. `silent`: the peer has not answered in time. `limit`: too many channels.
 */
export type LinkErrorCode = "reset" | "restarted" | "closed" | "lost" | "refused" | "busy" | "silent" | "limit";

/** The peer was lost or has refused. */
export class LinkError extends Error {
  override readonly name = "LinkError";
  readonly code: LinkErrorCode;

  constructor(code: LinkErrorCode, message: string, options?: ErrorOptions) {
    super(message, options);
    this.code = code;
  }
}

/** The peer broke the protocol: that connection ends. Channels wait for the next one. */
export class LinkProtocolError extends Error {
  override readonly name = "LinkProtocolError";
}
