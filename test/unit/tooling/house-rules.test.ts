import { globSync, readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { describe, expect, test } from "vitest";
import * as rules from "./house-rules.ts";

const root = fileURLToPath(new URL("../../..", import.meta.url));

function repository(): rules.Tree {
  const top = "{*.ts,*.js,*.json,*.md}";
  const below = "{src,test,bench,tools,scripts,docs}/**/*.{ts,js,json,md}";
  const paths = globSync([top, below], { cwd: root }).filter((path) => !path.startsWith("test/fixtures/"));
  return new Map(paths.sort().map((path) => [path, readFileSync(`${root}/${path}`, "utf8")]));
}

const tree = repository();

describe("this repository", () => {
  test("is what the rules look at", () => {
    expect(tree.has("package.json")).toBe(true);
    expect(tree.has("test/unit/tooling/house-rules.ts")).toBe(true);
  });

  test("describes every folder of src/ in a README.md that matches it", () => {
    expect(rules.readmeTables(tree)).toEqual([]);
  });

  test("has no long files", () => {
    expect(rules.fileLengths(tree)).toEqual([]);
  });

  test("imports files by the name they have on disk", () => {
    expect(rules.importExtensions(tree)).toEqual([]);
  });

  test("never awaits at the top level of a source file, which the bundle could not do", () => {
    expect(rules.topLevelAwait(tree)).toEqual([]);
  });

  test("has no barrels", () => {
    expect(rules.barrels(tree)).toEqual([]);
  });

  test("leaves no notes about unfinished work", () => {
    expect(rules.forbiddenWords(tree)).toEqual([]);
  });

  test("pins every dependency to one version, and names no registry", () => {
    expect(rules.exactPins(tree)).toEqual([]);
    expect(rules.lockFileHosts(tree)).toEqual([]);
  });

  test("declares the packages that the program imports, and no others", () => {
    expect(rules.dependencies(tree)).toEqual([]);
  });

  test("simulates the real overlay, not one of its own", () => {
    expect(rules.simulatedOverlays(tree)).toEqual([]);
  });

  test("waits in its tests for events, not for time", () => {
    expect(rules.sleepingTests(tree)).toEqual([]);
  });
});

const readme = (...entries: string[]) =>
  `Text.\n\n| file | what |\n| --- | --- |\n${entries.map((e) => `| \`${e}\` | x |`).join("\n")}\n\nStart reading at x.\n`;

type Example = { rule: (tree: rules.Tree) => string[]; files: Record<string, string> };

const GOOD: Record<string, Example> = {
  "a table that lists files and subfolders": {
    rule: rules.readmeTables,
    files: {
      "src/a/README.md": readme("x.ts", "b/"),
      "src/a/x.ts": "",
      "src/a/b/README.md": readme("y.ts"),
      "src/a/b/y.ts": "",
    },
  },
  "a file of 400 lines": { rule: rules.fileLengths, files: { "src/a/x.ts": "\n".repeat(400) } },
  "an import with its extension": {
    rule: rules.importExtensions,
    files: { "src/x.ts": 'import { a } from "./a.ts";\n' },
  },
  "an await inside a function": { rule: rules.topLevelAwait, files: { "src/x.ts": "async () => {\n  await x;\n};\n" } },
  "an ordinary file": { rule: rules.barrels, files: { "src/a/indexes.ts": "" } },
  "a word that only contains a forbidden one": { rule: rules.forbiddenWords, files: { "a.ts": `MAS${"TO"}${"DO"}N` } },
  "an exact pin": { rule: rules.exactPins, files: { "package.json": '{"dependencies":{"a":"1.2.3"}}' } },
  "packages that are declared and imported": {
    rule: rules.dependencies,
    files: {
      "package.json": '{"dependencies":{"@a/b":"1.2.3","peer":"1.2.3"},"optionalDependencies":{"c":"1.2.3"}}',
      "package-lock.json": '{"packages":{"node_modules/@a/b":{"peerDependencies":{"peer":"*"}}}}',
      "src/x.ts": 'import { b } from "@a/b/deep";\nimport b2 from "@a/b";\nimport "node:fs";\nrequire("c");\n',
    },
  },
  "a lock file without addresses": {
    rule: rules.lockFileHosts,
    files: { "package-lock.json": '{"version": "1.0.0"}' },
  },
  "a simulator that uses the overlay": { rule: rules.simulatedOverlays, files: { "test/sim/x.ts": "new Overlay();" } },
  "a test that polls": { rule: rules.sleepingTests, files: { "test/unit/x.test.ts": "await expect.poll(f).toBe(1);" } },
};

const BAD: Record<string, Example> = {
  "a folder without a README": { rule: rules.readmeTables, files: { "src/a/x.ts": "" } },
  "a file that the table leaves out": {
    rule: rules.readmeTables,
    files: { "src/a/README.md": readme(), "src/a/x.ts": "" },
  },
  "a file that only the table has": { rule: rules.readmeTables, files: { "src/a/README.md": readme("gone.ts") } },
  "a subfolder that the table leaves out": {
    rule: rules.readmeTables,
    files: { "src/a/README.md": readme(), "src/a/b/README.md": readme() },
  },
  "a README without a place to start": {
    rule: rules.readmeTables,
    files: { "src/a/README.md": "| `x.ts` | x |\n", "src/a/x.ts": "" },
  },
  "a file of 401 lines": { rule: rules.fileLengths, files: { "bench/x.ts": "\n".repeat(401) } },
  "an import without an extension": {
    rule: rules.importExtensions,
    files: { "src/x.ts": 'import {\n  a,\n} from "./a";\n' },
  },
  "an import of compiled code": { rule: rules.importExtensions, files: { "src/x.ts": 'export * from "../b/a.js";\n' } },
  "an import that goes down before it goes up": {
    rule: rules.importExtensions,
    files: { "src/x.ts": 'import { a } from "./../b/a.ts";\n' },
  },
  "a dynamic import without an extension": {
    rule: rules.importExtensions,
    files: { "src/x.ts": `const a = await ${"import"}("./a");\n` },
  },
  "an await at top level": { rule: rules.topLevelAwait, files: { "src/x.ts": "const a = await b();\n" } },
  "an index.ts": { rule: rules.barrels, files: { "src/a/index.ts": "" } },
  "a note about unfinished work": { rule: rules.forbiddenWords, files: { "docs/x.md": `${"TO"}${"DO"}: later` } },
  "a version range": { rule: rules.exactPins, files: { "package.json": '{"devDependencies":{"a":"^1.2.3"}}' } },
  "a tag instead of a version": { rule: rules.exactPins, files: { "package.json": '{"dependencies":{"a":"latest"}}' } },
  "a package that nothing imports": {
    rule: rules.dependencies,
    files: { "package.json": '{"dependencies":{"a":"1.2.3"}}' },
  },
  "a program that imports a development package": {
    rule: rules.dependencies,
    files: { "package.json": '{"devDependencies":{"a":"1.2.3"}}', "src/x.ts": 'import { a } from "a/b";\n' },
  },
  "a registry's address": {
    rule: rules.lockFileHosts,
    files: { "package-lock.json": '"resolved": "https://registry.example/a.tgz"' },
  },
  "a simulator with its own overlay": {
    rule: rules.simulatedOverlays,
    files: { "test/sim/x.ts": "class FakeOverlay {}" },
  },
  "a test that sleeps": { rule: rules.sleepingTests, files: { "test/unit/x.test.ts": `await ${"sleep"}(5);` } },
  "a test that awaits a timer": {
    rule: rules.sleepingTests,
    files: { "test/faults/x.test.ts": `await new ${"Promise"}((resolve) => ${"setTimeout"}(resolve, 5));` },
  },
};

describe("the rules", () => {
  test.each(Object.entries(GOOD))("accept %s", (_title, { rule, files }) => {
    expect(rule(new Map(Object.entries(files)))).toEqual([]);
  });

  test.each(Object.entries(BAD))("reject %s", (_title, { rule, files }) => {
    expect(rule(new Map(Object.entries(files)))).toHaveLength(1);
  });

  test("are each proved by a good and a bad example", () => {
    const all = new Set(Object.values(rules));
    for (const examples of [GOOD, BAD]) expect(new Set(Object.values(examples).map(({ rule }) => rule))).toEqual(all);
  });
});
