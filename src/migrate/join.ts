/**
 * What a source makes of a destination that joins. The destination says what it has written down; the source knows what it
 * has. Between them exactly one answer is safe, and this is where it is chosen.
 */
import { type FromDestination, MIGRATION_VERSION } from "./messages.ts";
import type { SourcePhase } from "./phases.ts";

export type Join = Extract<FromDestination, { type: "join" }>;

export interface SourceKnowledge {
  readonly phase: SourcePhase;
  readonly migrationId: string;
  /** Of the fences, where there are any. */
  readonly term: number;
  readonly disks: readonly string[];
}

/**
 * - `refuse`: it has no business here. `over`: what it knows of is over; it should clear up.
 * - `begin`: a destination that may pull. `grant`: one that has not taken up what it was granted.
 * - `serve`: the owner. `release`: the owner, with everything. `take-back`: it has durably let go of the disks.
 */
export type JoinAnswer =
  | { readonly kind: "refuse" | "over"; readonly reason: string }
  | { readonly kind: "begin" | "grant" | "serve" | "release" | "take-back" };

export function answerJoin(join: Join, source: SourceKnowledge): JoinAnswer {
  const names = source.disks.toSorted().join(", ");
  if (join.version !== MIGRATION_VERSION) return refuse(`version ${MIGRATION_VERSION} is spoken here`);
  if (names !== join.disks.toSorted().join(", ")) return refuse(`the disks here are ${names}`);
  const { state } = join.verdict;
  const owns = state === "ACTIVE" || state === "COMPLETE";
  if (join.migrationId !== undefined && join.migrationId !== source.migrationId) {
    if (owns) return refuse("this source has taken part in another migration since");
    return { kind: "over", reason: "that migration is over" };
  }
  if (source.phase === "granted" || source.phase === "serving" || source.phase === "released") {
    return answerGiven(join, source);
  }
  if (owns) return refuse("this source has taken its disks back");
  return state === "JOINED" ? { kind: "begin" } : { kind: "over", reason: "the source has its disks back" };
}

/** The disks were given away. */
function answerGiven({ verdict }: Join, { phase, term }: SourceKnowledge): JoinAnswer {
  if (verdict.state === "JOINED") {
    return phase === "granted" ? { kind: "grant" } : refuse("this destination was the owner, and does not know it");
  }
  const expected = verdict.state === "RETURNED" ? term + 1 : term;
  if (verdict.term !== expected) return refuse("the records of the two sides do not go together");
  if (verdict.state === "COMPLETE") return { kind: "release" };
  if (phase === "released") return refuse("this destination has said that it has everything");
  return verdict.state === "ACTIVE" ? { kind: "serve" } : { kind: "take-back" };
}

function refuse(reason: string): JoinAnswer {
  return { kind: "refuse", reason };
}
