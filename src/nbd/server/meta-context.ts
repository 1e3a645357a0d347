/** LIST_META_CONTEXT and SET_META_CONTEXT. Source: doc/proto.md, "Metadata querying". */
import {
  NBD_OPT_LIST_META_CONTEXT,
  NBD_OPT_SET_META_CONTEXT,
  NBD_REP_ACK,
  NBD_REP_ERR_INVALID,
  NBD_REP_ERR_UNKNOWN,
  NBD_REP_META_CONTEXT,
} from "../constants.ts";
import { baseAllocation } from "./block-status.ts";
import type { SelectedContext } from "./connection-context.ts";
import type { MetaContext, NbdExport } from "./export.ts";
import { optionReply, parseContextRequest } from "./option.ts";

/** What this file needs of the option state and rules. */
interface ContextState {
  readonly structured: boolean;
  selected: { exportName: string; contexts: readonly SelectedContext[] } | undefined;
}

interface ContextRules {
  readonly exports: readonly NbdExport[];
}

/** Lists the contexts that match any query; "namespace:" matches all of a namespace, no query at all matches everything. */
export function listContexts(data: Buffer, state: ContextState, rules: ContextRules): Buffer[] {
  const option = NBD_OPT_LIST_META_CONTEXT;
  if (!state.structured) return [optionReply(option, NBD_REP_ERR_INVALID, "metadata need structured replies")];
  const { name, queries } = parseContextRequest(data);
  const exported = rules.exports.find((candidate) => candidate.name === name);
  if (exported === undefined) return [optionReply(option, NBD_REP_ERR_UNKNOWN, "there is no export of that name")];
  const matches = contextsOf(exported).filter(
    (context) =>
      queries.length === 0 || queries.some((query) => query === context.name || isNamespaceOf(query, context.name)),
  );
  // When listing, ids mean nothing and are zero.
  return [...matches.map((context) => contextReply(option, 0, context)), optionReply(option, NBD_REP_ACK)];
}

/** Selects the contexts that are named exactly. Earlier selections end even when this one fails. */
export function selectContexts(data: Buffer, state: ContextState, rules: ContextRules): Buffer[] {
  const option = NBD_OPT_SET_META_CONTEXT;
  state.selected = undefined;
  if (!state.structured) return [optionReply(option, NBD_REP_ERR_INVALID, "metadata need structured replies")];
  const { name, queries } = parseContextRequest(data);
  const exported = rules.exports.find((candidate) => candidate.name === name);
  if (exported === undefined) return [optionReply(option, NBD_REP_ERR_UNKNOWN, "there is no export of that name")];
  const contexts = contextsOf(exported)
    .filter((context) => queries.includes(context.name))
    .map((context, index) => ({ id: index + 1, context }));
  state.selected = { exportName: name, contexts };
  return [...contexts.map(({ id, context }) => contextReply(option, id, context)), optionReply(option, NBD_REP_ACK)];
}

function contextsOf(exported: NbdExport): MetaContext[] {
  return [baseAllocation(exported.device), ...(exported.contexts ?? [])];
}

function isNamespaceOf(query: string, name: string): boolean {
  return query.endsWith(":") && query.indexOf(":") === query.length - 1 && name.startsWith(query);
}

function contextReply(option: number, id: number, context: MetaContext): Buffer {
  const head = Buffer.alloc(4);
  head.writeUInt32BE(id, 0);
  return optionReply(option, NBD_REP_META_CONTEXT, Buffer.concat([head, Buffer.from(context.name, "utf8")]));
}
