/** Error replies to options, in words. proto.md, "Option reply types". */
import {
  NBD_REP_ERR_BLOCK_SIZE_REQD,
  NBD_REP_ERR_EXT_HEADER_REQD,
  NBD_REP_ERR_INVALID,
  NBD_REP_ERR_PLATFORM,
  NBD_REP_ERR_POLICY,
  NBD_REP_ERR_SHUTDOWN,
  NBD_REP_ERR_TLS_REQD,
  NBD_REP_ERR_TOO_BIG,
  NBD_REP_ERR_UNKNOWN,
  NBD_REP_ERR_UNSUP,
  NBD_REP_FLAG_ERROR,
} from "../constants.ts";
import { type NbdConnectCode, NbdConnectError, printable } from "./errors.ts";
import type { HandshakeSession, OptionOutcome } from "./handshake.ts";

interface Meaning {
  readonly code: NbdConnectCode;
  readonly why: string;
  readonly hint: string;
}

const SEE_LOG = "The server's log may say more.";

const MEANINGS: ReadonlyMap<number, Meaning> = new Map<number, Meaning>([
  [NBD_REP_ERR_UNSUP, { code: "unsupported", why: "the server does not know how", hint: "A newer server may." }],
  [NBD_REP_ERR_POLICY, { code: "policy", why: "the server's policy forbids it", hint: "Check its access rules." }],
  [NBD_REP_ERR_INVALID, { code: "refused", why: "the server calls the request invalid", hint: SEE_LOG }],
  [NBD_REP_ERR_PLATFORM, { code: "unsupported", why: "the server was built without it", hint: "Another build may." }],
  [
    NBD_REP_ERR_TLS_REQD,
    { code: "tls-required", why: "the server insists on TLS", hint: "Use nbds:// and give a certificate or a key." },
  ],
  [
    NBD_REP_ERR_UNKNOWN,
    {
      code: "unknown-export",
      why: "the server has no export of that name",
      hint: "List what it has; names match exactly, and the default export is the empty name.",
    },
  ],
  [
    NBD_REP_ERR_SHUTDOWN,
    { code: "shutting-down", why: "the server is shutting down", hint: "Try again once it runs again." },
  ],
  [
    NBD_REP_ERR_BLOCK_SIZE_REQD,
    { code: "refused", why: "the server wants its block sizes respected, though we offered to", hint: SEE_LOG },
  ],
  [NBD_REP_ERR_TOO_BIG, { code: "refused", why: "the server finds the request too big", hint: SEE_LOG }],
  [
    NBD_REP_ERR_EXT_HEADER_REQD,
    { code: "unsupported", why: "the server insists on extended headers", hint: "Allow the extended dialect." },
  ],
]);

/** The error that an error reply amounts to. `exportName`, where the option was about one. */
export function refusal(
  outcome: Extract<OptionOutcome, { kind: "error" }>,
  session: Pick<HandshakeSession, "peer">,
  exportName?: string,
): NbdConnectError {
  const number = outcome.type - NBD_REP_FLAG_ERROR;
  const meaning = MEANINGS.get(outcome.type) ?? { code: "refused", why: `error ${number} of an option`, hint: SEE_LOG };
  const said = outcome.explanation === "" ? "" : ` ("${printable(outcome.explanation)}")`;
  const what =
    exportName === undefined
      ? `cannot negotiate with ${session.peer}`
      : `cannot open the export "${printable(exportName)}" of ${session.peer}`;
  return new NbdConnectError(meaning.code, { what, why: meaning.why + said, hint: meaning.hint });
}
