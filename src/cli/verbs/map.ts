/**
 * `map` and `missing`, once their flags are known. The instance gives a page at a time, each as of its own instant; runs
 * that a page's end has cut are put together again.
 */
import type { ControlClient } from "../../control/client.ts";
import { LOCAL, MISSING } from "../../control/pages.ts";
import { diskOf, print, type VerbFlags, withInstance } from "./actions.ts";

interface Run {
  readonly offset: number;
  readonly length: number;
  readonly type: number;
}

const DESCRIPTIONS: Readonly<Record<number, string>> = { [LOCAL]: "local", [MISSING]: "missing" };

export async function printPresence(flags: VerbFlags & { readonly totals?: boolean }): Promise<void> {
  await withInstance("map", flags, async (client) => {
    const runs = joinRuns(mapRuns(client, flags));
    if (flags.totals) await print(renderTotals(await totalsOf(runs), flags.json ?? false));
    else await printRuns(runs, flags.json ?? false, flags.json ? mapEntry : mapColumns);
  });
}

export async function printMissing(flags: VerbFlags): Promise<void> {
  await withInstance("missing", flags, async (client) => {
    const runs = joinRuns(missingRuns(client, flags));
    await printRuns(runs, flags.json ?? false, flags.json ? missingEntry : missingColumns);
  });
}

async function* mapRuns(client: ControlClient, flags: VerbFlags): AsyncGenerator<Run> {
  for (let cursor: number | null = 0; cursor !== null; ) {
    const page: Awaited<ReturnType<typeof client.call<"map">>> = await client.call("map", { ...diskOf(flags), cursor });
    for (const [offset, length, type] of page.runs) yield { offset, length, type };
    cursor = advanced(cursor, page.next);
  }
}

async function* missingRuns(client: ControlClient, flags: VerbFlags): AsyncGenerator<Run> {
  for (let cursor: number | null = 0; cursor !== null; ) {
    const page: Awaited<ReturnType<typeof client.call<"missing">>> = await client.call("missing", {
      ...diskOf(flags),
      cursor,
    });
    for (const [offset, length] of page.runs) yield { offset, length, type: MISSING };
    cursor = advanced(cursor, page.next);
  }
}

/** An instance that sends us round in circles is not followed. */
function advanced(cursor: number, next: number | null): number | null {
  if (next !== null && next <= cursor) throw new Error(`a page that begins at ${cursor} continues at ${next}`);
  return next;
}

export async function* joinRuns(runs: AsyncIterable<Run> | Iterable<Run>): AsyncGenerator<Run> {
  let last: Run | undefined;
  for await (const run of runs) {
    if (last !== undefined && last.type === run.type && last.offset + last.length === run.offset) {
      last = { ...last, length: last.length + run.length };
    } else {
      if (last !== undefined) yield last;
      last = run;
    }
  }
  if (last !== undefined) yield last;
}

/** As nbdinfo prints them: columns, or a JSON array with one entry a line. */
async function printRuns(runs: AsyncIterable<Run>, json: boolean, line: (run: Run) => string): Promise<void> {
  let separator = json ? "[\n" : "";
  for await (const run of runs) {
    await print(`${separator}${line(run)}`);
    separator = json ? ",\n" : "";
    if (!json) await print("\n");
  }
  if (json) await print(separator === "[\n" ? "[]\n" : "\n]\n");
}

function wide(value: number, columns: number): string {
  return String(value).padStart(columns);
}

function describe({ type }: Run): string {
  return DESCRIPTIONS[type] ?? String(type);
}

export function mapColumns(run: Run): string {
  return `${wide(run.offset, 10)}  ${wide(run.length, 10)}  ${wide(run.type, 3)}  ${describe(run)}`;
}

function mapEntry(run: Run): string {
  return `{ "offset": ${run.offset}, "length": ${run.length}, "type": ${run.type}, "description": "${describe(run)}" }`;
}

function missingColumns(run: Run): string {
  return `${wide(run.offset, 10)}  ${wide(run.length, 10)}`;
}

function missingEntry(run: Run): string {
  return `{ "offset": ${run.offset}, "length": ${run.length} }`;
}

interface Total {
  readonly type: number;
  readonly size: number;
  readonly percent: number;
}

async function totalsOf(runs: AsyncIterable<Run>): Promise<Total[]> {
  const sizes = new Map<number, number>();
  for await (const { type, length } of runs) sizes.set(type, (sizes.get(type) ?? 0) + length);
  const all = [...sizes.values()].reduce((sum, size) => sum + size, 0);
  const totals = [...sizes].sort(([a], [b]) => a - b);
  return totals.map(([type, size]) => ({ type, size, percent: (size / all) * 100 }));
}

export function renderTotals(totals: readonly Total[], json: boolean): string {
  const name = (type: number): string => DESCRIPTIONS[type] ?? String(type);
  if (!json) {
    const line = ({ size, percent, type }: Total): string =>
      `${wide(size, 10)} ${percent.toFixed(1).padStart(5)}% ${wide(type, 3)} ${name(type)}\n`;
    return totals.map(line).join("");
  }
  const entry = ({ size, percent, type }: Total): string =>
    `{ "size": ${size}, "percent": ${Number(percent.toPrecision(6))}, "type": ${type}, "description": "${name(type)}" }`;
  return `[\n${totals.map(entry).join(",\n")}\n]\n`;
}
