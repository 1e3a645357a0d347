/** `blockferry top` over real instances: on a terminal, on a pipe, and to its end. */
import { spawn } from "node:child_process";
import { mkdirSync } from "node:fs";
import { afterAll, describe, expect, test } from "vitest";
import { itWith } from "../../support/tools.ts";
import { BLOCKFERRY, blockferry, expectError, makeFolder, makeImage, Running, waitFor } from "../cli/harness.ts";

const folder = makeFolder();
afterAll(() => folder[Symbol.dispose]());

let places = 0;

/** A runtime directory of its own. */
function place(): { env: Record<string, string>; at: (name: string) => string } {
  const name = `run${++places}`;
  mkdirSync(folder.at(name), { mode: 0o700 });
  return { env: { BLOCKFERRY_RUNTIME_DIR: folder.at(name) }, at: (file) => folder.at(`${name}/${file}`) };
}

async function serving({ env, at }: ReturnType<typeof place>, name: string): Promise<Running> {
  const image = makeImage(folder, `${name}${places}.raw`);
  const where = ["-x", name, "-U", at(`${name}.sock`), "-C", at(`${name}.ctl`)];
  const server = new Running(BLOCKFERRY, ["serve", "--exit-with-parent", ...where, image], env);
  await server.ready();
  return server;
}

describe("top", () => {
  test("shows every instance once, as lines and as an object, and only those that are named", async () => {
    const here = place();
    expectError(blockferry(["top"], { env: here.env }), 69, /no instance to watch/);
    await using first = await serving(here, "vda");
    await using second = await serving(here, "vdb");
    const lines = blockferry(["top", "--once"], { env: here.env });
    expect(lines).toMatchObject({ code: 0, stderr: "" });
    expect(lines.stdout).toBe(
      `serve ${first.pid}  vda  running  4.0 MiB\nserve ${second.pid}  vdb  running  4.0 MiB\n`,
    );
    const { stdout } = blockferry(["top", "--once", "--json", "-C", here.at("vdb.ctl")], { env: here.env });
    expect(JSON.parse(stdout)).toMatchObject({
      instances: [{ control: here.at("vdb.ctl"), ended: false, status: { pid: second.pid, role: "serve" } }],
    });
    expectError(blockferry(["top", "-C", here.at("none.ctl")]), 69, /nobody listens there/);
  });

  test("goes on with a line a second, and ends with the last instance, or when it is told to", async () => {
    const here = place();
    await using server = await serving(here, "vda");
    await using told = new Running(BLOCKFERRY, ["top"], here.env);
    await using top = new Running(BLOCKFERRY, ["top", "--json"], here.env);
    await waitFor(() => (top.stdout.split("\n").length > 2 && told.stdout.split("\n").length > 2 ? true : undefined));
    told.signal("SIGINT");
    expect((await told.ended).code).toBe(0);
    server.signal("SIGTERM");
    expect((await top.ended).code).toBe(0);
    const looks = top.stdout
      .trim()
      .split("\n")
      .map((line) => JSON.parse(line) as { instances: unknown[] });
    expect(looks.at(0)?.instances).toHaveLength(1);
    expect(looks.at(-1)?.instances).toHaveLength(0);
  });

  itWith(["script"], "on a terminal is drawn in place until q is pressed, and gives the terminal back", async () => {
    const here = place();
    await using server = await serving(here, "vda");
    const child = spawn("script", ["-qefc", `${BLOCKFERRY} top; stty -a`, "/dev/null"], {
      env: { ...process.env, ...here.env, TERM: "xterm" },
      stdio: ["pipe", "pipe", "inherit"],
    });
    let shown = "";
    child.stdout.on("data", (bytes) => (shown += String(bytes)));
    const ended = new Promise((resolve) => child.once("close", resolve));
    // Drawn a second time, one second later.
    await waitFor(() => (shown.split("\u001b[H").length > 2 ? true : undefined));
    child.stdin.write("q");
    expect(await ended).toBe(0);
    const [before = "", ...screens] = shown.split("\u001b[H");
    expect(before).toBe("\u001b[?1049h\u001b[?25l");
    expect(screens[0]).toContain(`serve ${server.pid}: running`);
    const after = shown.slice(shown.lastIndexOf("\u001b[?1049l"));
    expect(shown).toContain("\u001b[?25h\u001b[?1049l");
    // What was seen last stays, and the terminal is as the shell wants it.
    expect(after).toContain(`serve ${server.pid}: running`);
    expect(after).toMatch(/[^-]icanon/);
    expect(after).toMatch(/[^-]echo /);
  });
});
