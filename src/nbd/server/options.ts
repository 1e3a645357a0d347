/**
 * What the server answers to each option. No I/O here: an option and the state so far give replies and a next step.
 * Source: doc/proto.md, "Option types".
 */
import {
  EXPORT_NAME_ZEROES,
  NBD_INFO_BLOCK_SIZE,
  NBD_INFO_DESCRIPTION,
  NBD_INFO_EXPORT,
  NBD_INFO_NAME,
  NBD_OPT_ABORT,
  NBD_OPT_EXPORT_NAME,
  NBD_OPT_EXTENDED_HEADERS,
  NBD_OPT_GO,
  NBD_OPT_INFO,
  NBD_OPT_LIST,
  NBD_OPT_LIST_META_CONTEXT,
  NBD_OPT_SET_META_CONTEXT,
  NBD_OPT_STARTTLS,
  NBD_OPT_STRUCTURED_REPLY,
  NBD_REP_ACK,
  NBD_REP_ERR_EXT_HEADER_REQD,
  NBD_REP_ERR_INVALID,
  NBD_REP_ERR_POLICY,
  NBD_REP_ERR_TLS_REQD,
  NBD_REP_ERR_TOO_BIG,
  NBD_REP_ERR_UNKNOWN,
  NBD_REP_ERR_UNSUP,
  NBD_REP_INFO,
  NBD_REP_SERVER,
} from "../constants.ts";
import type { SelectedContext } from "./connection-context.ts";
import { type NbdExport, transmissionFlags } from "./export.ts";
import { listContexts, selectContexts } from "./meta-context.ts";
import { OptionFormError, optionReply, parseInfoRequest, parseName } from "./option.ts";

/** What has been agreed on so far. STARTTLS starts over with a new one. */
export interface OptionState {
  structured: boolean;
  extended: boolean;
  /** The last SET_META_CONTEXT; its selection counts only for the export it named. */
  selected: { exportName: string; contexts: readonly SelectedContext[] } | undefined;
  readonly secure: boolean;
}

export interface OptionRules {
  readonly exports: readonly NbdExport[];
  readonly tls: "off" | "on" | "require";
  readonly requestBytesMax: number;
  /** The client has agreed to leave out the zeroes after EXPORT_NAME. */
  readonly noZeroes: boolean;
  readonly upgrade?: OptionUpgrade | undefined;
}

/** A private option that turns the session into something else, which is none of ours. */
export interface OptionUpgrade {
  readonly option: number;
  /** The type of the reply to the option with these data; ACK ends the handshake. */
  answer(data: Uint8Array): number;
}

export type NextStep =
  | { readonly kind: "continue" }
  /** Send the replies, then begin the TLS handshake. */
  | { readonly kind: "start-tls" }
  /** Send the replies, then enter transmission. */
  | { readonly kind: "go"; readonly exported: NbdExport; readonly contexts: readonly SelectedContext[] }
  /** Send the replies, then hand the stream over. */
  | { readonly kind: "upgrade" }
  /** Send the replies, then close: the client asked for it. */
  | { readonly kind: "abort" }
  /** Close without a word: the option has no way to report an error. */
  | { readonly kind: "drop"; readonly why: string };

export interface OptionOutcome {
  readonly replies: readonly Buffer[];
  readonly next: NextStep;
}

const CONTINUE: NextStep = { kind: "continue" };

export function newOptionState(secure: boolean): OptionState {
  return { structured: false, extended: false, selected: undefined, secure };
}

export function answerOption(option: number, data: Buffer, state: OptionState, rules: OptionRules): OptionOutcome {
  if (lacksTls(option, state, rules)) return refuseWithoutTls(option);
  try {
    return answerAllowed(option, data, state, rules);
  } catch (error) {
    if (!(error instanceof OptionFormError)) throw error;
    if (option === NBD_OPT_EXPORT_NAME) return drop(error.message);
    return refuse(option, NBD_REP_ERR_INVALID, error.message);
  }
}

/** As `answerOption`, for an option whose data are too long to be looked at. */
export function answerTooLong(option: number, state: OptionState, rules: OptionRules): OptionOutcome {
  if (lacksTls(option, state, rules)) return refuseWithoutTls(option);
  if (option === NBD_OPT_EXPORT_NAME) return drop("EXPORT_NAME with a name that is too long");
  // It ends the earlier selection, as every other failure does.
  if (option === NBD_OPT_SET_META_CONTEXT) state.selected = undefined;
  return refuse(option, NBD_REP_ERR_TOO_BIG, "the option is too long");
}

function lacksTls(option: number, state: OptionState, rules: OptionRules): boolean {
  return rules.tls === "require" && !state.secure && option !== NBD_OPT_STARTTLS && option !== NBD_OPT_ABORT;
}

function refuseWithoutTls(option: number): OptionOutcome {
  if (option === NBD_OPT_EXPORT_NAME) return drop("EXPORT_NAME without TLS, which is required");
  return refuse(option, NBD_REP_ERR_TLS_REQD, "this server requires TLS");
}

function answerAllowed(option: number, data: Buffer, state: OptionState, rules: OptionRules): OptionOutcome {
  switch (option) {
    case NBD_OPT_EXPORT_NAME:
      return exportName(data, state, rules);
    case NBD_OPT_ABORT:
      return { replies: [optionReply(option, NBD_REP_ACK)], next: { kind: "abort" } };
    case NBD_OPT_LIST:
      return list(data, rules);
    case NBD_OPT_STARTTLS:
      return startTls(data, state, rules);
    case NBD_OPT_STRUCTURED_REPLY:
    case NBD_OPT_EXTENDED_HEADERS:
      return chooseDialect(option, data, state);
    case NBD_OPT_INFO:
    case NBD_OPT_GO:
      return infoOrGo(option, data, state, rules);
    case NBD_OPT_LIST_META_CONTEXT:
      return { replies: listContexts(data, state, rules), next: CONTINUE };
    case NBD_OPT_SET_META_CONTEXT:
      return { replies: selectContexts(data, state, rules), next: CONTINUE };
    default:
      return option === rules.upgrade?.option
        ? upgrade(option, rules.upgrade.answer(data))
        : refuse(option, NBD_REP_ERR_UNSUP, "this server does not know that option");
  }
}

function upgrade(option: number, type: number): OptionOutcome {
  if (type !== NBD_REP_ACK) return refuse(option, type, "the session cannot be upgraded so");
  return { replies: [optionReply(option, type)], next: { kind: "upgrade" } };
}

function exportName(data: Buffer, state: OptionState, rules: OptionRules): OptionOutcome {
  if (state.extended) return drop("EXPORT_NAME after EXTENDED_HEADERS");
  const exported = findExport(parseName(data), rules);
  if (exported === undefined) return drop("EXPORT_NAME asked for an export that does not exist");
  const reply = Buffer.alloc(10 + (rules.noZeroes ? 0 : EXPORT_NAME_ZEROES));
  putExportInfo(reply, 0, exported, state);
  return { replies: [reply], next: go(exported, state) };
}

function list(data: Buffer, rules: OptionRules): OptionOutcome {
  if (data.length > 0) return refuse(NBD_OPT_LIST, NBD_REP_ERR_INVALID, "LIST carries no data");
  const replies = rules.exports.map((exported) => {
    const name = Buffer.from(exported.name, "utf8");
    const length = Buffer.alloc(4);
    length.writeUInt32BE(name.length, 0);
    return optionReply(
      NBD_OPT_LIST,
      NBD_REP_SERVER,
      Buffer.concat([length, name, Buffer.from(exported.description ?? "", "utf8")]),
    );
  });
  return { replies: [...replies, optionReply(NBD_OPT_LIST, NBD_REP_ACK)], next: CONTINUE };
}

function startTls(data: Buffer, state: OptionState, rules: OptionRules): OptionOutcome {
  if (data.length > 0) return refuse(NBD_OPT_STARTTLS, NBD_REP_ERR_INVALID, "STARTTLS carries no data");
  if (state.secure) return refuse(NBD_OPT_STARTTLS, NBD_REP_ERR_INVALID, "TLS is in use already");
  if (rules.tls === "off") return refuse(NBD_OPT_STARTTLS, NBD_REP_ERR_POLICY, "this server has no TLS credentials");
  return { replies: [optionReply(NBD_OPT_STARTTLS, NBD_REP_ACK)], next: { kind: "start-tls" } };
}

function chooseDialect(option: number, data: Buffer, state: OptionState): OptionOutcome {
  if (data.length > 0) return refuse(option, NBD_REP_ERR_INVALID, "this option carries no data");
  const wide = option === NBD_OPT_EXTENDED_HEADERS;
  if (state.extended && !wide) {
    return refuse(option, NBD_REP_ERR_EXT_HEADER_REQD, "extended headers were agreed on already");
  }
  if (wide ? state.extended : state.structured)
    return refuse(option, NBD_REP_ERR_INVALID, "this was agreed on already");
  state.structured = true;
  state.extended = wide;
  return { replies: [optionReply(option, NBD_REP_ACK)], next: CONTINUE };
}

function infoOrGo(option: number, data: Buffer, state: OptionState, rules: OptionRules): OptionOutcome {
  const request = parseInfoRequest(data);
  const exported = findExport(request.name, rules);
  if (exported === undefined) return refuse(option, NBD_REP_ERR_UNKNOWN, "there is no export of that name");
  const replies = [exportInfo(option, exported, state)];
  if (request.types.includes(NBD_INFO_NAME)) replies.push(textInfo(option, NBD_INFO_NAME, exported.name));
  if (request.types.includes(NBD_INFO_DESCRIPTION) && exported.description !== undefined) {
    replies.push(textInfo(option, NBD_INFO_DESCRIPTION, exported.description));
  }
  if (request.types.includes(NBD_INFO_BLOCK_SIZE)) replies.push(blockSizeInfo(option, exported, rules));
  replies.push(optionReply(option, NBD_REP_ACK));
  return { replies, next: option === NBD_OPT_GO ? go(exported, state) : CONTINUE };
}

function go(exported: NbdExport, state: OptionState): NextStep {
  const contexts = state.selected?.exportName === exported.name ? state.selected.contexts : [];
  return { kind: "go", exported, contexts };
}

/** u16 type, u64 size, u16 transmission flags. */
function exportInfo(option: number, exported: NbdExport, state: OptionState): Buffer {
  const info = Buffer.alloc(12);
  info.writeUInt16BE(NBD_INFO_EXPORT, 0);
  putExportInfo(info, 2, exported, state);
  return optionReply(option, NBD_REP_INFO, info);
}

function putExportInfo(out: Buffer, at: number, exported: NbdExport, state: OptionState): void {
  out.writeBigUInt64BE(BigInt(exported.device.sizeBytes), at);
  out.writeUInt16BE(transmissionFlags(exported, state.structured), at + 8);
}

function textInfo(option: number, type: number, text: string): Buffer {
  const head = Buffer.alloc(2);
  head.writeUInt16BE(type, 0);
  return optionReply(option, NBD_REP_INFO, Buffer.concat([head, Buffer.from(text, "utf8")]));
}

/** u16 type, u32 minimum, u32 preferred, u32 maximum. We take requests of any alignment, so the minimum is 1. */
function blockSizeInfo(option: number, exported: NbdExport, rules: OptionRules): Buffer {
  const info = Buffer.alloc(14);
  info.writeUInt16BE(NBD_INFO_BLOCK_SIZE, 0);
  info.writeUInt32BE(1, 2);
  info.writeUInt32BE(exported.device.capabilities.blockSizes.preferred, 6);
  info.writeUInt32BE(rules.requestBytesMax, 10);
  return optionReply(option, NBD_REP_INFO, info);
}

export function findExport(name: string, rules: OptionRules): NbdExport | undefined {
  return rules.exports.find((candidate) => candidate.name === name);
}

function refuse(option: number, type: number, message: string): OptionOutcome {
  return { replies: [optionReply(option, type, message)], next: CONTINUE };
}

function drop(why: string): OptionOutcome {
  return { replies: [], next: { kind: "drop", why } };
}
