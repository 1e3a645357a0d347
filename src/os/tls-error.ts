/** Why TLS did not come about. */

/**
 * `credentials`: our own files are missing or wrong; nothing was sent. `untrusted`: the peer did not prove itself to
 * us. `refused`: the peer did not accept us. `deadline`: no handshake in time. `handshake`: anything else that went
 * wrong between the two. `unsupported`: the stream is not one that TLS can run over.
 */
export type TlsErrorCode = "credentials" | "untrusted" | "refused" | "deadline" | "handshake" | "unsupported";

export interface TlsErrorText {
  readonly what: string;
  readonly why: string;
  /** What whoever runs this can do about it. */
  readonly hint?: string;
}

export class TlsError extends Error {
  override readonly name = "TlsError";
  readonly code: TlsErrorCode;
  readonly what: string;
  readonly why: string;
  readonly hint: string | undefined;

  constructor(code: TlsErrorCode, text: TlsErrorText, options?: ErrorOptions) {
    super(`${text.what}: ${text.why}`, options);
    this.code = code;
    this.what = text.what;
    this.why = text.why;
    this.hint = text.hint;
  }
}
