/**
 * Every gate must reject what it is there to reject: a layering tool that checked nothing would look just like one that
 * found nothing. The probes (test/fixtures/probes) and one generated file for each pair of rooms are placed in a
 * scratch tree with the real configuration files, and each gate runs once over that tree.
 */
import { execFile } from "node:child_process";
import {
  copyFileSync,
  globSync,
  mkdirSync,
  mkdtempDisposableSync,
  readFileSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { beforeAll, describe, expect, test } from "vitest";

const root = fileURLToPath(new URL("../../..", import.meta.url));
const probesFolder = join(root, "test/fixtures/probes");

/** What each room may import besides itself, as docs/ARCHITECTURE.md draws it; cli may start demo, not the reverse. */
const WAIST = ["env", "util", "block"];
const BELOW_LINK = [...WAIST, "image", "nbd", "cor", "stream"];
const EVERYTHING = [...BELOW_LINK, "os", "link", "migrate", "qmp", "control"];
const MAY_IMPORT: Readonly<Record<string, readonly string[]>> = {
  env: [],
  util: [],
  block: ["env", "util"],
  image: WAIST,
  nbd: WAIST,
  cor: WAIST,
  os: WAIST,
  stream: [...WAIST, "image", "nbd", "cor"],
  link: BELOW_LINK,
  migrate: [...BELOW_LINK, "link"],
  qmp: [...BELOW_LINK, "link"],
  control: ["env", "util"],
  cli: [...EVERYTHING, "demo"],
  demo: EVERYTHING,
};
const ROOMS = Object.keys(MAY_IMPORT);
const LAYER_RULE = "biome lint/style/noRestrictedImports";

type Probe = { name: string; at: string; text: string; rejectedBy: string[] };

const TIDY_FUNCTION = (lines: number) => `export function probe(): void {\n${"  void 0;\n".repeat(lines)}}\n`;
const TIDY_FILE = (lines: number) => `export const probe = 1;\n${"void 0;\n".repeat(lines - 1)}`;

function generatedProbes(): Probe[] {
  const probes: Probe[] = [];
  const add = (at: string, text: string, ...rejectedBy: string[]) => probes.push({ name: at, at, text, rejectedBy });
  add("src/cor/gen-long-function.ts", TIDY_FUNCTION(71), "biome lint/complexity/noExcessiveLinesPerFunction");
  add("src/cor/gen-good-function.ts", TIDY_FUNCTION(70));
  add("test/unit/gen-good-long-function.ts", TIDY_FUNCTION(71));
  add("src/cor/gen-long-file.ts", TIDY_FILE(401), "biome lint/style/noExcessiveLinesPerFile");
  add("bench/gen-long-file.ts", TIDY_FILE(401), "biome lint/style/noExcessiveLinesPerFile");
  add("src/cor/gen-good-file.ts", TIDY_FILE(400));
  for (const to of ROOMS) add(`src/${to}/gen-target.ts`, "export const target = 1;\n");
  const importing = (path: string) => `import { target } from "${path}";\n\nexport const probe = target;\n`;
  for (const from of ROOMS) {
    for (const to of ROOMS.filter((room) => room !== from)) {
      const verdict = MAY_IMPORT[from]?.includes(to) ? [] : [LAYER_RULE];
      add(`src/${from}/gen-imports-${to}.ts`, importing(`../${to}/gen-target.ts`), ...verdict);
      add(`src/${from}/deep/er/gen-imports-${to}.ts`, importing(`../../../${to}/gen-target.ts`), ...verdict);
    }
    add(`test/unit/gen-imports-${from}.ts`, importing(`../../src/${from}/gen-target.ts`));
    add(`bench/gen-imports-${from}.ts`, importing(`../src/${from}/gen-target.ts`));
    add(`src/${from}/gen-imports-bench.ts`, importing("../../bench/gen-target.ts"), LAYER_RULE);
  }
  add("bench/gen-target.ts", "export const target = 1;\n");
  // A folder inside a room may have another room's name.
  add("src/image/stream/gen-target.ts", "export const target = 1;\n");
  add("src/image/gen-imports-own-folder.ts", importing("./stream/gen-target.ts"));
  return probes;
}

function writtenProbes(): Probe[] {
  return globSync("*.ts", { cwd: probesFolder }).map((name) => {
    const text = readFileSync(join(probesFolder, name), "utf8");
    const at = /^\/\/ at: (\S+)$/m.exec(text)?.[1];
    const rejectedBy = [...text.matchAll(/^\/\/ rejected by: (.+)$/gm)].map((match) => match[1] ?? "");
    const accepted = /^\/\/ accepted$/m.test(text);
    if (at === undefined || accepted === rejectedBy.length > 0) throw new Error(`${name}: unclear header`);
    return { name, at, text, rejectedBy };
  });
}

/** Runs a gate's program in `cwd`; a gate that finds something exits non-zero, which is no error here. */
async function output(cwd: string, program: string, args: readonly string[]): Promise<string> {
  const command = join(root, "node_modules/.bin", program);
  return await new Promise((resolve) => {
    execFile(command, args, { cwd, maxBuffer: 1 << 28 }, (_error, stdout, stderr) => resolve(stdout || stderr));
  });
}

/** Each gate's complaints as `file → "gate rule"`. */
type Complaints = Map<string, Set<string>>;

async function biome(cwd: string, found: (path: string, rule: string) => void): Promise<void> {
  const args = ["ci", "--error-on-warnings", "--max-diagnostics=none", "--colors=off", "--reporter=json", "."];
  const report = JSON.parse(await output(cwd, "biome", args)) as {
    diagnostics: { category: string; location: { path: string } }[];
  };
  for (const { category, location } of report.diagnostics) found(location.path, `biome ${category}`);
}

async function eslint(cwd: string, found: (path: string, rule: string) => void): Promise<void> {
  const report = JSON.parse(await output(cwd, "eslint", ["--max-warnings", "0", "--format", "json", "."])) as {
    filePath: string;
    messages: { ruleId: string | null; message: string }[];
  }[];
  for (const { filePath, messages } of report) {
    for (const { ruleId, message } of messages) {
      const rule = ruleId ?? (message.startsWith("Unused eslint-disable") ? "(unused directive)" : message);
      found(filePath.slice(cwd.length + 1), `eslint ${rule}`);
    }
  }
}

async function tsc(cwd: string, found: (path: string, rule: string) => void): Promise<void> {
  const report = await output(cwd, "tsc", ["--noEmit", "--pretty", "false"]);
  for (const match of report.matchAll(/^([^(\s]+)\(\d+,\d+\): error (TS\d+):/gm))
    found(match[1] ?? "", `tsc ${match[2]}`);
}

/** The probes in a scratch tree with the repository's own configuration, once through every gate. */
async function complaintsAbout(probes: readonly Probe[]): Promise<Complaints> {
  using folder = mkdtempDisposableSync(join(tmpdir(), "blockferry-probes-"));
  for (const name of ["biome.json", "eslint.config.js", "tsconfig.json", "package.json"]) {
    copyFileSync(join(root, name), join(folder.path, name));
  }
  symlinkSync(join(root, "node_modules"), join(folder.path, "node_modules"));
  for (const { at, text } of probes) {
    mkdirSync(dirname(join(folder.path, at)), { recursive: true });
    writeFileSync(join(folder.path, at), text);
  }
  const complaints: Complaints = new Map();
  const found = (path: string, rule: string) => {
    const rules = complaints.get(path) ?? new Set();
    complaints.set(path, rules.add(rule));
  };
  await Promise.all([biome, eslint, tsc].map((gate) => gate(folder.path, found)));
  return complaints;
}

const written = writtenProbes();
const generated = generatedProbes();
let complaints: Complaints = new Map();

const verdictOn = (probe: Probe) => [...(complaints.get(probe.at) ?? [])].sort();

beforeAll(async () => {
  complaints = await complaintsAbout([...written, ...generated]);
}, 60_000);

describe("the gates", () => {
  test("each ran, and found something", () => {
    const gates = new Set([...complaints.values()].flatMap((rules) => [...rules].map((rule) => rule.split(" ")[0])));
    expect([...gates].sort()).toEqual(["biome", "eslint", "tsc"]);
  });

  test("are tried on probes that are placed in different files", () => {
    const places = [...written, ...generated].map(({ at }) => at);
    expect(new Set(places).size).toBe(places.length);
  });

  test.each(written.filter(({ rejectedBy }) => rejectedBy.length > 0))("reject $name", (probe) => {
    expect(verdictOn(probe)).toEqual(expect.arrayContaining(probe.rejectedBy));
  });

  test.each(written.filter(({ rejectedBy }) => rejectedBy.length === 0))("accept $name", (probe) => {
    expect(verdictOn(probe)).toEqual([]);
  });

  test("reject long files and functions, and every import between rooms but those of the layers", () => {
    const actual = Object.fromEntries(generated.map((probe) => [probe.at, verdictOn(probe)]));
    const expected = Object.fromEntries(generated.map(({ at, rejectedBy }) => [at, rejectedBy]));
    expect(actual).toEqual(expected);
  });
});
