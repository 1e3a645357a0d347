/** The peer broke the NBD protocol: log it and close that connection. */
export class NbdProtocolError extends Error {
  override readonly name = "NbdProtocolError";
}
