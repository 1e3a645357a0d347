/** An export with a metadata context of its own beside base:allocation, as nbdinfo, libnbd and our own client see it. */
import { afterAll, beforeAll, expect, test } from "vitest";
import { connectNbd } from "../../../src/nbd/client/connect.ts";
import type { MetaContext, StatusExtent } from "../../../src/nbd/server/export.ts";
import { NbdServer } from "../../../src/nbd/server/server.ts";
import { type Listener, listenOn } from "../../../src/os/listen.ts";
import { createRealEnv } from "../../../src/os/real-env.ts";
import { NbdHandle } from "../../support/libnbd.ts";
import { run, runOk } from "../../support/run.ts";
import { ScriptedDevice } from "../../support/scripted-device.ts";
import { keepingLog } from "../../support/server-rig.ts";
import { tempDir } from "../../support/temp-dir.ts";
import { itWith } from "../../support/tools.ts";
import { KiB, MiB } from "./layout.ts";

const BASE = "base:allocation";
const PRESENCE = "x-blockferry:presence";
const SIZE_BYTES = 8 * MiB + 512;
const BLOCK_BYTES = 64 * KiB;
const REQ_ONE = 8;

/** Made up: runs of one, two and three blocks in turn, with flags that no other context has. */
function flagsAt(offset: number): number {
  const place = Math.floor(offset / BLOCK_BYTES) % 6;
  if (place === 0) return 4;
  return place < 3 ? 0x8000_0001 : 10;
}

function presenceRuns(offset: number, length: number): StatusExtent[] {
  const runs: { length: number; flags: number }[] = [];
  for (let at = offset; at < offset + length; ) {
    const end = Math.min(offset + length, (Math.floor(at / BLOCK_BYTES) + 1) * BLOCK_BYTES);
    const last = runs.at(-1);
    if (last?.flags === flagsAt(at)) last.length += end - at;
    else runs.push({ length: end - at, flags: flagsAt(at) });
    at = end;
  }
  return runs;
}

const presence: MetaContext = {
  name: PRESENCE,
  status: async (offset, length, countMax) => presenceRuns(offset, length).slice(0, countMax),
};

const env = createRealEnv();
const folder = tempDir();
const path = folder.file("s");
const uri = `nbd+unix:///?socket=${path}`;
let server: NbdServer;
let listener: Listener;

beforeAll(async () => {
  const device = new ScriptedDevice({ sizeBytes: SIZE_BYTES });
  const exports = [
    { name: "", device, readOnly: true, contexts: [presence] },
    { name: "plain", device, readOnly: true },
  ];
  server = new NbdServer({ clock: env.clock, exports, log: keepingLog([]) });
  listener = await listenOn({ kind: "unix", path }, (stream) => server.accept(stream));
});

afterAll(async () => {
  listener.close();
  await server.close();
  folder[Symbol.dispose]();
});

itWith(["nbdinfo"], "nbdinfo shows which contexts each export has", async () => {
  const listed = JSON.parse(await runOk(["nbdinfo", "--list", "--json", uri])) as {
    exports: { "export-name": string; contexts: string[] }[];
  };
  const contexts = new Map(listed.exports.map((entry) => [entry["export-name"], entry.contexts]));
  expect(contexts.get("")).toEqual([BASE, PRESENCE]);
  expect(contexts.get("plain")).toEqual([BASE]);
  expect(JSON.parse(await runOk(["nbdinfo", "--json", uri]))).toMatchObject({
    exports: [{ contexts: [BASE, PRESENCE] }],
  });
});

itWith(
  ["nbdinfo"],
  "nbdinfo --map of the private context is the map, whole; an export without it refuses",
  async () => {
    const map = JSON.parse(await runOk(["nbdinfo", "--json", `--map=${PRESENCE}`, uri])) as {
      offset: number;
      length: number;
      type: number;
    }[];
    expect(map.map(({ length, type }) => ({ length, flags: type }))).toEqual(presenceRuns(0, SIZE_BYTES));
    const plain = await run(["nbdinfo", `--map=${PRESENCE}`, `nbd+unix:///plain?socket=${path}`]);
    expect([plain.status, plain.stdout]).toEqual([1, ""]);
  },
);

itWith(
  ["python3-libnbd"],
  "libnbd lists the contexts by name and by namespace, and gets both in one session",
  async () => {
    const listed = async (...queries: string[]) => {
      await using nbd = await NbdHandle.connect(uri, { before: [["set_opt_mode", true]] });
      for (const query of queries) await nbd.call("add_meta_context", query);
      return await nbd.call("opt_list_meta_context");
    };
    expect(await listed()).toEqual([BASE, PRESENCE]);
    expect(await listed("x-blockferry:")).toEqual([PRESENCE]);
    expect(await listed(PRESENCE, "x-blockferry:presenc")).toEqual([PRESENCE]);
    const before = [PRESENCE, BASE].map((name) => ["add_meta_context", name] as const);
    await using nbd = await NbdHandle.connect(uri, { before });
    const [offset, length] = [70_000, 3 * MiB + 1];
    const found = new Map(
      (await nbd.blockStatus(length, offset)).map(([name, at, entries]) => [name, { at, entries }]),
    );
    expect(found.get(PRESENCE)).toEqual({
      at: offset,
      entries: presenceRuns(offset, length).flatMap((extent) => [extent.length, extent.flags]),
    });
    expect(found.get(BASE)).toEqual({ at: offset, entries: [length, 3] });
    const one = await nbd.blockStatus(length, 0, REQ_ONE);
    expect(new Map(one.map(([name, , entries]) => [name, entries])).get(PRESENCE)).toEqual([BLOCK_BYTES, 4]);
  },
);

for (const dialectMax of ["structured", "extended"] as const) {
  test(`our own client gets both contexts in one session (${dialectMax})`, async () => {
    const options = { address: { kind: "unix", path }, exportName: "", metaContexts: [PRESENCE], dialectMax } as const;
    await using client = await connectNbd(env, options);
    expect([client.dialect, [...client.contexts].sort()]).toEqual([dialectMax, [BASE, PRESENCE]]);
    const [offset, length] = [1000, SIZE_BYTES - 1000];
    expect(await client.blockStatus(PRESENCE, offset, length)).toEqual(presenceRuns(offset, length));
    expect(await client.blockStatus(BASE, offset, length)).toEqual([{ length, flags: 3 }]);
  });
}
