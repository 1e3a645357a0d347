/**
 * Runs a short history on an overlay of two clusters, crashes it at every instant that matters, in every way, and tells
 * what is wrong with what is left: acknowledged data that is gone, or clusters that are local without their data.
 */
import type { CorChaosPoint } from "../../../src/cor/chaos-points.ts";
import type { Overlay } from "../../../src/cor/overlay.ts";
import { FakeFiles } from "../../support/fake-files.ts";
import { pattern } from "../../support/patterns.ts";
import { CLUSTER, create, memory, open, readAll, world } from "./support.ts";
import { TraceFiles } from "./trace-files.ts";

const SECTOR = 512;
const SIZE = 2 * CLUSTER;

/** w0, w1: write a cluster; p0: write its second half; z0: zero it; u0: write it with FUA; r0: read it; f: flush; d0: discard all but its first sector. */
export const OPERATIONS = ["w0", "w1", "p0", "z0", "u0", "r0", "d0", "f"] as const;
export type Operation = (typeof OPERATIONS)[number];

interface Change {
  readonly begin: number;
  end: number;
  readonly offset: number;
  /** A discard may leave what was there. */
  readonly hint: boolean;
  readonly bytes: Uint8Array;
}

interface Run {
  readonly trace: TraceFiles;
  readonly changes: Change[];
  /** Events before they began, and when they were acknowledged. FUA covers its own change alone. */
  readonly flushes: { begin: number; end: number; only?: Change }[];
}

export interface Exploration {
  readonly histories: number;
  readonly crashes: number;
  /** The first thing that is wrong. */
  readonly wrong: string | undefined;
}

const BACKING = pattern(0, SIZE, 1);

/** `together`: all operations are issued at once, instead of one after another. */
export async function explore(
  operations: readonly Operation[],
  together: boolean,
  mutants: readonly CorChaosPoint[] = [],
): Promise<Exploration> {
  const run = await perform(operations, together, mutants);
  let crashes = 0;
  const { events } = run.trace;
  for (let at = 1; at <= events.length; at++) {
    const event = events[at];
    if (event !== undefined && events[at - 1]?.kind !== "note" && event.kind !== "syncEnd") continue;
    for (const files of run.trace.afterPowerLoss(at)) {
      crashes += 1;
      const wrong = await inspect(files, run, { at, power: true, mutants });
      if (wrong !== undefined)
        return { histories: 1, crashes, wrong: `${operations.join(" ")}, power lost at ${at}: ${wrong}` };
    }
  }
  for (let at = 1; at <= events.length; at++) {
    crashes += 1;
    const wrong = await inspect(run.trace.afterKill(at), run, { at, power: false, mutants });
    if (wrong !== undefined)
      return { histories: 1, crashes, wrong: `${operations.join(" ")}, killed at ${at}: ${wrong}` };
  }
  return { histories: 1, crashes, wrong: undefined };
}

async function perform(
  operations: readonly Operation[],
  together: boolean,
  mutants: readonly CorChaosPoint[],
): Promise<Run> {
  const trace = new TraceFiles(new FakeFiles());
  const env = world(trace, ...mutants);
  await create(env, SIZE);
  trace.restart();
  const overlay = await open(env, { backing: memory(BACKING), logHalfRecords: 4 });
  const run: Run = { trace, changes: [], flushes: [] };
  const jobs: Promise<void>[] = [];
  for (const [index, operation] of operations.entries()) {
    jobs.push(issue(overlay, operation, index + 2, run));
    if (!together) await jobs.at(-1);
  }
  await Promise.all(jobs);
  // Until replies that were handed out are stored, too.
  for (let turn = 0; turn < 40; turn++) await Promise.resolve();
  return run;
}

async function issue(
  overlay: Overlay,
  operation: Operation,
  salt: number,
  { trace, changes, flushes }: Run,
): Promise<void> {
  const offset = operation[1] === "1" ? CLUSTER : 0;
  const begin = trace.events.length;
  const done = (mark: { end: number }) => {
    trace.note(`${operation} acknowledged`);
    mark.end = trace.events.length;
  };
  if (operation === "r0") return void (await readAll(overlay, 0, CLUSTER));
  if (operation === "f") {
    const flush = { begin, end: Infinity };
    flushes.push(flush);
    await overlay.flush();
    return done(flush);
  }
  if (operation === "u0") {
    const bytes = pattern(0, CLUSTER, salt);
    await changeAt(0, bytes, () => overlay.write(0, bytes, { fua: true }));
    const only = changes.find((each) => each.bytes === bytes);
    if (only !== undefined) flushes.push({ begin, end: trace.events.length, only });
    return;
  }
  if (operation === "z0") return changeAt(0, new Uint8Array(CLUSTER), () => overlay.writeZeroes(0, CLUSTER));
  if (operation === "d0") return discard();
  if (operation === "p0") {
    const half = CLUSTER / 2;
    return changeAt(half, pattern(half, half, salt), (bytes) => overlay.write(half, bytes));
  }
  return changeAt(offset, pattern(offset, CLUSTER, salt), (bytes) => overlay.write(offset, bytes));

  async function discard(): Promise<void> {
    const record: Change = { begin, end: Infinity, offset: SECTOR, hint: true, bytes: new Uint8Array(SIZE - SECTOR) };
    changes.push(record);
    await overlay.discard(SECTOR, SIZE - SECTOR);
    done(record);
  }
  async function changeAt(start: number, bytes: Uint8Array, act: (bytes: Uint8Array) => Promise<void>): Promise<void> {
    const record: Change = { begin, end: Infinity, offset: start, hint: false, bytes };
    changes.push(record);
    await act(bytes);
    done(record);
  }
}

interface Crash {
  readonly at: number;
  readonly power: boolean;
  readonly mutants: readonly CorChaosPoint[];
}

async function inspect(files: FakeFiles, run: Run, { at, power, mutants }: Crash): Promise<string | undefined> {
  const bootId = power ? "boot 2" : "boot 1";
  let found: Uint8Array;
  try {
    const env = world(files, ...mutants);
    await using overlay = await open(env, { backing: memory(BACKING), bootId, logHalfRecords: 4 });
    found = await readAll(overlay, 0, SIZE);
  } catch (error) {
    return String(error);
  }
  for (let offset = 0; offset < SIZE; offset += SECTOR) {
    const allowed = allowedAt(run, offset, { at, power });
    const sector = found.subarray(offset, offset + SECTOR);
    if (!allowed.some((value) => Buffer.compare(value, sector) === 0)) {
      return `the sector at ${offset} holds nothing that was acknowledged or written later`;
    }
  }
  return undefined;
}

/** The values that a sector may have: the last one that must have survived, and those that may have followed. */
function allowedAt(run: Run, offset: number, { at, power }: { at: number; power: boolean }): Uint8Array[] {
  const covers = (flush: Run["flushes"][number], change: Change) =>
    flush.only === undefined ? change.end <= flush.begin : flush.only === change;
  const must = (change: Change) =>
    power ? run.flushes.some((flush) => flush.end <= at && covers(flush, change)) : change.end <= at;
  const touching = run.changes.filter(
    (change) => change.begin < at && change.offset <= offset && offset < change.offset + change.bytes.length,
  );
  const certain = touching.filter((change) => must(change) && !change.hint);
  // A change that was over before a certain one began has been replaced for good.
  const alive = touching.filter((change) => !certain.some((later) => change.end <= later.begin));
  const values = alive.map(({ bytes, offset: start }) => bytes.subarray(offset - start, offset - start + SECTOR));
  if (certain.length === 0) values.push(BACKING.subarray(offset, offset + SECTOR));
  return values;
}

/** All histories of `length` operations. */
export function* histories(length: number): Generator<Operation[]> {
  for (let code = 0; code < OPERATIONS.length ** length; code++) {
    const list: Operation[] = [];
    for (let index = 0, rest = code; index < length; index++) {
      list.push(OPERATIONS[rest % OPERATIONS.length] ?? "f");
      rest = Math.floor(rest / OPERATIONS.length);
    }
    yield list;
  }
}
