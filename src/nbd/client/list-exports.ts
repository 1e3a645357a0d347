/** Asks a server what it exports, without opening anything. proto.md, "Option types": LIST, INFO, LIST_META_CONTEXT. */
import type { Env } from "../../env/env.ts";
import type { Address } from "../../env/links.ts";
import {
  NBD_OPT_INFO,
  NBD_OPT_LIST,
  NBD_OPT_LIST_META_CONTEXT,
  NBD_REP_ERR_SHUTDOWN,
  NBD_REP_ERR_UNSUP,
  NBD_REP_META_CONTEXT,
  NBD_REP_SERVER,
} from "../constants.ts";
import { NbdProtocolError } from "../error.ts";
import { dialled, type HandshakeOptions } from "./connect.ts";
import { NbdConnectError } from "./errors.ts";
import { type ExportInfo, InfoCollector } from "./export-info.ts";
import type { HandshakeSession } from "./handshake.ts";
import { agreeOnDialect, askInfo, open, told } from "./negotiate.ts";
import { refusal } from "./refusal.ts";
import { decodeString, encodeMetaContextQuery, viewOf } from "./wire.ts";

/** Exports of one server, and metadata contexts of one export, that we are willing to hear of. */
const EXPORTS_MAX = 10_000;
const CONTEXTS_MAX = 1000;

export interface ListOptions extends HandshakeOptions {
  readonly address: Address;
  /** Also ask about each export. */
  readonly details?: boolean;
}

export interface ListedExport {
  readonly name: string;
  /** Text for people, where the server has one. */
  readonly description?: string;
  /** With `details`, where the server tells. */
  readonly info?: ExportInfo;
  /** With `details`: metadata contexts that could be selected, or patterns of them. */
  readonly contexts?: readonly string[];
  /** With `details`: why the server does not tell about this one. */
  readonly refused?: NbdConnectError;
}

/** In the server's order. Rejects with `NbdConnectError` (code "policy" where listing is forbidden) or `NbdProtocolError`. */
export function listExports(env: Pick<Env, "clock" | "links">, options: ListOptions): Promise<ListedExport[]> {
  return dialled(env, options.address, options, async (session) => {
    await open(session, options.tls ?? { mode: "off" });
    if (!session.fixed) {
      throw new NbdConnectError("unsupported", {
        what: `cannot list the exports of ${session.peer}`,
        why: "the server is too old for that",
        hint: "Open the export by its name.",
      });
    }
    const listed = await list(session);
    return options.details === true ? await describe(session, listed, options) : listed;
  });
}

async function list(session: HandshakeSession): Promise<ListedExport[]> {
  const listed: ListedExport[] = [];
  const take = (data: Uint8Array): void => {
    const nameBytes = data.length < 4 ? Infinity : viewOf(data).getUint32(0);
    if (nameBytes > data.length - 4) throw new NbdProtocolError("the name of an export is longer than its reply");
    const name = decodeString(data.subarray(4, 4 + nameBytes), "the name of an export");
    const description = decodeString(data.subarray(4 + nameBytes), "the description of an export");
    listed.push(description === "" ? { name } : { name, description });
  };
  const replies = { type: NBD_REP_SERVER, countMax: EXPORTS_MAX, take };
  const outcome = await told(session.option({ option: NBD_OPT_LIST, replies }), `cannot list ${session.peer}`);
  if (outcome.kind === "ack") return listed;
  const { code, why, hint } = refusal(outcome, session);
  throw new NbdConnectError(code, { what: `cannot list the exports of ${session.peer}`, why, hint });
}

async function describe(
  session: HandshakeSession,
  listed: readonly ListedExport[],
  options: ListOptions,
): Promise<ListedExport[]> {
  const dialect = await agreeOnDialect(session, options.dialectMax ?? "extended");
  const described: ListedExport[] = [];
  for (const item of listed) {
    const collector = new InfoCollector(item.name);
    const outcome = await askInfo(session, { option: NBD_OPT_INFO, exportName: item.name, collector });
    if (outcome.kind === "error") {
      if (outcome.type === NBD_REP_ERR_SHUTDOWN) throw refusal(outcome, session);
      // A server without INFO has nothing to tell about the others either.
      if (outcome.type === NBD_REP_ERR_UNSUP) return [...listed];
      described.push({ ...item, refused: refusal(outcome, session, item.name) });
      continue;
    }
    const info = collector.result();
    const contexts = dialect === "simple" ? [] : await listContexts(session, item.name);
    const description = item.description ?? info.description;
    described.push({ ...item, ...(description === undefined ? {} : { description }), info, contexts });
  }
  return described;
}

async function listContexts(session: HandshakeSession, exportName: string): Promise<string[]> {
  const names: string[] = [];
  const take = (data: Uint8Array): void => {
    if (data.length < 4) throw new NbdProtocolError("a metadata context has no number");
    names.push(decodeString(data.subarray(4), "the name of a metadata context"));
  };
  const request = {
    option: NBD_OPT_LIST_META_CONTEXT,
    data: encodeMetaContextQuery(exportName, []),
    replies: { type: NBD_REP_META_CONTEXT, countMax: CONTEXTS_MAX, take },
  };
  const outcome = await told(session.option(request), `cannot list ${session.peer}`);
  // After an error none of them counts.
  return outcome.kind === "ack" ? names : [];
}
