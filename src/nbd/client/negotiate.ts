/**
 * What a client asks for, and in which order: TLS first, so that nothing agreed on in plaintext survives; then headers,
 * metadata contexts, and the export, with the fallbacks that older servers need.
 *
 * ```
 * [STARTTLS] → EXTENDED_HEADERS, else STRUCTURED_REPLY → SET_META_CONTEXT → GO, else EXPORT_NAME
 * ```
 */
import type { TlsClient } from "../../env/tls.ts";
import {
  NBD_INFO_BLOCK_SIZE,
  NBD_INFO_DESCRIPTION,
  NBD_INFO_NAME,
  NBD_OPT_EXTENDED_HEADERS,
  NBD_OPT_GO,
  NBD_OPT_SET_META_CONTEXT,
  NBD_OPT_STRUCTURED_REPLY,
  NBD_REP_ERR_SHUTDOWN,
  NBD_REP_ERR_TLS_REQD,
  NBD_REP_ERR_UNSUP,
  NBD_REP_INFO,
  NBD_REP_META_CONTEXT,
} from "../constants.ts";
import { NbdProtocolError } from "../error.ts";
import { NbdConnectError, printable } from "./errors.ts";
import { checkUsable, DEFAULT_BLOCK_SIZES, type ExportInfo, InfoCollector } from "./export-info.ts";
import type { HandshakeSession, OptionOutcome, OptionRequest } from "./handshake.ts";
import { ServerHungUp } from "./handshake-reader.ts";
import { refusal } from "./refusal.ts";
import { decodeString, encodeInfoRequest, encodeMetaContextQuery, viewOf } from "./wire.ts";

export const BASE_ALLOCATION = "base:allocation";

/**
 * - `off`: plaintext. `on`: TLS where the server offers it, which whoever sits in between can prevent. `require`: TLS or
 *   nothing.
 */
export type TlsChoice = { readonly mode: "off" } | { readonly mode: "on" | "require"; readonly client: TlsClient };

/** Which headers are used in transmission. */
export type Dialect = "simple" | "structured" | "extended";

export interface NegotiateOptions {
  /** "" is the server's default export. */
  readonly exportName: string;
  readonly tls: TlsChoice;
  /** Contexts besides `base:allocation`. */
  readonly metaContexts: readonly string[];
  /** The most modern dialect to ask for. */
  readonly dialectMax: Dialect;
}

export interface Negotiated {
  readonly info: ExportInfo;
  readonly dialect: Dialect;
  /** Identifiers of the metadata contexts that the server agreed to, by name. */
  readonly contexts: ReadonlyMap<string, number>;
  readonly secure: boolean;
}

/** A server has four information types to tell; some repeat themselves. */
const INFO_REPLIES_MAX = 64;

/** Goes all the way from the greeting to the door of transmission. Throws `NbdConnectError` and `NbdProtocolError`. */
export async function negotiate(session: HandshakeSession, options: NegotiateOptions): Promise<Negotiated> {
  await open(session, options.tls);
  if (!session.fixed) return { ...(await byExportName(session, options, "simple")), contexts: new Map() };
  const dialect = await agreeOnDialect(session, options.dialectMax);
  const contexts = dialect === "simple" ? new Map<string, number>() : await selectContexts(session, options);
  return { ...(await go(session, options, dialect)), contexts };
}

/** The greeting, and TLS as the caller wants it. Afterwards nothing is agreed on but that. */
export async function open(session: HandshakeSession, tls: TlsChoice): Promise<void> {
  const what = `cannot negotiate with ${session.peer}`;
  await told(session.greet(), what);
  if (tls.mode === "off") return;
  const hint = "Set up TLS on the server, or, where the network can be trusted, connect without it.";
  if (!session.fixed) {
    if (tls.mode === "on") return;
    const why = "the server is too old for TLS, or somebody in between pretends that it is";
    throw new NbdConnectError("tls-unavailable", { what, why, hint });
  }
  const outcome = await told(session.startTls(tls.client), what);
  if (outcome.kind === "ack" || tls.mode === "on") return;
  const why = `the server does not offer TLS (it answered: ${refusal(outcome, session).why})`;
  throw new NbdConnectError("tls-unavailable", { what, why, hint });
}

/** Asks for the newest headers first. */
export async function agreeOnDialect(session: HandshakeSession, dialectMax: Dialect): Promise<Dialect> {
  if (dialectMax === "extended" && (await agreed(session, { option: NBD_OPT_EXTENDED_HEADERS }))) return "extended";
  if (dialectMax !== "simple" && (await agreed(session, { option: NBD_OPT_STRUCTURED_REPLY }))) return "structured";
  return "simple";
}

/** Sends an option that we can do without. Some errors end the session all the same. */
async function agreed(session: HandshakeSession, request: OptionRequest): Promise<boolean> {
  const outcome = await told(session.option(request), `cannot negotiate with ${session.peer}`);
  if (outcome.kind === "ack") return true;
  if (outcome.type === NBD_REP_ERR_TLS_REQD || outcome.type === NBD_REP_ERR_SHUTDOWN) throw refusal(outcome, session);
  return false;
}

async function selectContexts(session: HandshakeSession, options: NegotiateOptions): Promise<Map<string, number>> {
  const wanted = [...new Set([BASE_ALLOCATION, ...options.metaContexts])];
  const selected = new Map<string, number>();
  const take = (data: Uint8Array): void => {
    if (data.length < 5) throw new NbdProtocolError("a metadata context has no name");
    const id = viewOf(data).getUint32(0);
    const name = decodeString(data.subarray(4), "the name of a metadata context");
    if (!wanted.includes(name))
      throw new NbdProtocolError(`the metadata context "${printable(name)}" was not asked for`);
    if (selected.has(name) || [...selected.values()].includes(id)) {
      throw new NbdProtocolError(`the metadata context "${printable(name)}" or its number came twice`);
    }
    selected.set(name, id);
  };
  const request = {
    option: NBD_OPT_SET_META_CONTEXT,
    data: encodeMetaContextQuery(options.exportName, wanted),
    replies: { type: NBD_REP_META_CONTEXT, countMax: wanted.length, take },
  };
  // After an error none is selected, whatever came before it.
  return (await agreed(session, request)) ? selected : new Map();
}

type Agreement = Omit<Negotiated, "contexts">;

async function go(session: HandshakeSession, options: NegotiateOptions, dialect: Dialect): Promise<Agreement> {
  const collector = new InfoCollector(options.exportName);
  const outcome = await askInfo(session, { option: NBD_OPT_GO, exportName: options.exportName, collector });
  if (outcome.kind === "error") {
    // Extended headers forbid EXPORT_NAME, and a server that has them has GO.
    const fallback = outcome.type === NBD_REP_ERR_UNSUP && dialect !== "extended";
    if (fallback) return byExportName(session, options, dialect);
    throw refusal(outcome, session, options.exportName);
  }
  const info = collector.result();
  checkUsable(info);
  return { info, dialect, secure: session.secure };
}

/** INFO or GO with all information types that we understand; asking for block sizes is a promise to respect them. */
export function askInfo(
  session: HandshakeSession,
  question: { option: number; exportName: string; collector: InfoCollector },
): Promise<OptionOutcome> {
  const { option, exportName, collector } = question;
  const request: OptionRequest = {
    option,
    data: encodeInfoRequest(exportName, [NBD_INFO_BLOCK_SIZE, NBD_INFO_NAME, NBD_INFO_DESCRIPTION]),
    replies: { type: NBD_REP_INFO, countMax: INFO_REPLIES_MAX, take: (data) => collector.take(data) },
    ...(option === NBD_OPT_GO ? { ackState: "awaiting-reply" } : {}),
  };
  return told(session.option(request), `cannot open the export "${printable(exportName)}" of ${session.peer}`);
}

async function byExportName(
  session: HandshakeSession,
  options: NegotiateOptions,
  dialect: Dialect,
): Promise<Agreement> {
  const { exportName } = options;
  try {
    const { sizeBytes, flags } = await session.exportName(exportName);
    const info = { name: exportName, sizeBytes, flags, blockSizes: DEFAULT_BLOCK_SIZES };
    checkUsable(info);
    return { info, dialect, secure: session.secure };
  } catch (cause) {
    if (!(cause instanceof ServerHungUp)) throw cause;
    throw new NbdConnectError("closed", {
      what: `cannot open the export "${printable(exportName)}" of ${session.peer}`,
      why: "the server, an old one that cannot tell errors, hung up",
      hint: "Most often it has no export of that name, does not let us in, or wants TLS; its log will say.",
      cause,
    });
  }
}

/** Gives a hang-up a meaning. */
export async function told<T>(work: Promise<T>, what: string): Promise<T> {
  try {
    return await work;
  } catch (cause) {
    if (!(cause instanceof ServerHungUp)) throw cause;
    const hint = "See the server's log; it may allow only some addresses, or too many clients may be connected.";
    throw new NbdConnectError("closed", { what, why: cause.message, hint, cause });
  }
}
