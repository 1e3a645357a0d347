import { expect, test } from "vitest";
import { answerJoin, type Join } from "../../../src/migrate/join.ts";
import {
  decodeMessage,
  encodeMessage,
  FromDestination,
  FromSource,
  type Verdict,
} from "../../../src/migrate/messages.ts";
import { DESTINATION_EDGES, SOURCE_EDGES, type SourcePhase, shownPhase } from "../../../src/migrate/phases.ts";

const MIGRATION = "a1".repeat(16);
const TERM = 7;

function join(verdict: Verdict, change: Partial<Join> = {}): Join {
  const own = verdict.state === "JOINED" ? {} : { migrationId: MIGRATION };
  return {
    type: "join",
    version: 1,
    disks: ["vdb", "vda"],
    mode: "hybrid",
    verdict,
    written: false,
    ...own,
    ...change,
  };
}

function answer(phase: SourcePhase, question: Join): string {
  return answerJoin(question, { phase, migrationId: MIGRATION, term: TERM, disks: ["vda", "vdb"] }).kind;
}

const VERDICTS: readonly Verdict[] = [
  { state: "JOINED" },
  { state: "DECLINED", term: TERM },
  { state: "ACTIVE", term: TERM },
  { state: "COMPLETE", term: TERM },
  { state: "RETURNED", term: TERM + 1 },
];

test("to each pair of what the two sides know there is one answer", () => {
  const table: Readonly<Partial<Record<SourcePhase, string>>> = {
    setup: "begin over refuse refuse over",
    ready: "begin over refuse refuse over",
    granted: "grant take-back serve release take-back",
    serving: "refuse take-back serve release take-back",
    released: "refuse refuse refuse release refuse",
  };
  for (const [phase, expected] of Object.entries(table)) {
    const answers = VERDICTS.map((verdict) => answer(phase as SourcePhase, join(verdict)));
    expect(answers.join(" "), phase).toBe(expected);
  }
});

test("an owner of another term, or of another migration, is refused; who owns nothing is told that it is over", () => {
  const other = { migrationId: "b2".repeat(16) };
  expect(answer("granted", join({ state: "ACTIVE", term: TERM - 1 }))).toBe("refuse");
  expect(answer("granted", join({ state: "RETURNED", term: TERM }))).toBe("refuse");
  expect(answer("granted", join({ state: "ACTIVE", term: TERM }, other))).toBe("refuse");
  expect(answer("setup", join({ state: "COMPLETE", term: TERM }, other))).toBe("refuse");
  for (const verdict of VERDICTS.slice(0, 2)) expect(answer("granted", join(verdict, other))).toBe("over");
});

test("a destination with other disks, or of another version, is refused", () => {
  expect(answer("setup", join({ state: "JOINED" }, { disks: ["vda"] }))).toBe("refuse");
  expect(answer("setup", join({ state: "JOINED" }, { version: 2 }))).toBe("refuse");
});

test("messages come through as they were, and what is no message is refused", () => {
  const question = join({ state: "RETURNED", term: 3 });
  expect(decodeMessage(FromDestination, encodeMessage(question))).toEqual(question);
  const pages: [number, Uint8Array<ArrayBuffer>][] = [[5, new Uint8Array(128).fill(3)]];
  const clean = { type: "clean", disk: "vda", pages } as const;
  expect(decodeMessage(FromSource, encodeMessage({ ...clean, pages }))).toMatchObject({ type: "clean", disk: "vda" });
  for (const bad of [
    Uint8Array.of(0xc1),
    Uint8Array.of(0x80),
    encodeMessage({ ...question, disks: ["../etc"] }),
    encodeMessage({ ...question, written: 1 as unknown as boolean }),
    encodeMessage({ ...question, type: "welcome" as "join" }),
    Uint8Array.of(0xdd, 0xff, 0xff, 0xff, 0xff),
  ]) {
    expect(() => decodeMessage(FromDestination, bad)).toThrow("a message");
  }
});

test("a refusal that names as many disks as there can be is one that the destination understands", () => {
  const disks = Array.from({ length: 32 }, (_, index) => `${index}`.padEnd(48, "x"));
  const known = { phase: "setup", migrationId: MIGRATION, term: TERM, disks } as const;
  const refusal = answerJoin(join({ state: "JOINED" }), known);
  if (refusal.kind !== "refuse") throw new Error("it was not refused");
  const { reason } = refusal;
  expect(reason.length).toBeGreaterThan(1024);
  const received = decodeMessage(FromSource, encodeMessage({ type: "refused", reason }));
  expect(received).toEqual({ type: "refused", reason: reason.slice(0, 1024) });
});

test("every phase can be reached, and only ends have no way on", () => {
  const reach = (edges: Readonly<Record<string, readonly string[]>>, from: string): string[] => {
    const seen = new Set([from]);
    for (const phase of seen) for (const next of edges[phase] ?? []) seen.add(next);
    return [...seen].toSorted();
  };
  expect(reach(SOURCE_EDGES, "setup")).toEqual(Object.keys(SOURCE_EDGES).toSorted());
  expect(reach(DESTINATION_EDGES, "setup")).toEqual(Object.keys(DESTINATION_EDGES).toSorted());
  const ends = Object.entries(DESTINATION_EDGES).filter(([, next]) => next.length === 0);
  expect(ends.map(([phase]) => phase).toSorted()).toEqual(["cancelled", "complete", "failed"]);
});

test("a link that is down shows where the phase needs it, and nowhere else", () => {
  expect(shownPhase<SourcePhase>("granted", false)).toBe("disconnected");
  expect(shownPhase<SourcePhase>("granted", true)).toBe("granted");
  expect(shownPhase<SourcePhase>("setup", false)).toBe("setup");
});
