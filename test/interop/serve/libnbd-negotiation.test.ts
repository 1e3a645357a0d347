/** The handshake and metadata contexts, as libnbd sees them option by option. */
import { afterAll, beforeAll, expect } from "vitest";
import { NbdHandle } from "../../support/libnbd.ts";
import { makeImage, pattern } from "../../support/patterns.ts";
import { type ServeProcess, startServe } from "../../support/serve-process.ts";
import { tempDir } from "../../support/temp-dir.ts";
import { itWith } from "../../support/tools.ts";
import { runsOf, SPARSE_BYTES, SPARSE_REGIONS } from "./layout.ts";

const NEEDS = ["python3-libnbd"];
const REQ_ONE = 8;
const folder = tempDir();
let server: ServeProcess;

beforeAll(async () => {
  makeImage(folder.file("disk.img"), SPARSE_BYTES, SPARSE_REGIONS);
  const flags = ["-r", "-x", "vda"];
  server = await startServe({ image: folder.file("disk.img"), socket: folder.file("s"), flags });
});

afterAll(async () => {
  await server.kill();
  folder[Symbol.dispose]();
});

function negotiating(): Promise<NbdHandle> {
  return NbdHandle.connect(server.uri, { before: [["set_opt_mode", true]] });
}

itWith(NEEDS, "exports are listed, looked at, and opened in one handshake", async () => {
  await using nbd = await negotiating();
  const names = ((await nbd.call("opt_list")) as [string, string][]).map(([name]) => name);
  expect(names.sort()).toEqual(["", "vda"]);
  await nbd.call("set_export_name", "vda");
  await nbd.call("opt_info");
  expect(await nbd.call("get_size")).toBe(SPARSE_BYTES);
  expect(await nbd.call("is_read_only")).toBe(true);
  await nbd.call("set_export_name", "nope");
  expect(await nbd.errnoOf("opt_info")).toBe("ENOENT");
  expect(await nbd.errnoOf("opt_go")).toBe("ENOENT");
  // A refused GO leaves the handshake open.
  await nbd.call("set_export_name", "");
  await nbd.call("opt_go");
  expect((await nbd.read(512, 4096)).equals(pattern(4096, 512))).toBe(true);
});

itWith(NEEDS, "the name and the block sizes are told when asked for", async () => {
  const before = [["set_full_info", true]] as const;
  await using nbd = await NbdHandle.connect(server.uriOf("vda"), { before });
  expect(await nbd.call("get_canonical_export_name")).toBe("vda");
  expect(await nbd.call("get_block_size", 0)).toBe(1);
  expect(await nbd.call("get_block_size", 1)).toBe(4096);
  expect(await nbd.call("get_block_size", 2)).toBe(64 * 1024 * 1024);
  expect(await nbd.call("get_protocol")).toBe("newstyle-fixed");
});

itWith(NEEDS, "an ended handshake is closed politely", async () => {
  await using nbd = await negotiating();
  await nbd.call("opt_abort");
  expect(await nbd.call("aio_is_closed")).toBe(true);
  expect(await nbd.call("aio_is_dead")).toBe(false);
});

itWith(NEEDS, "contexts are listed by exact name, by namespace, and all together", async () => {
  const listed = async (...queries: string[]) => {
    await using nbd = await negotiating();
    for (const query of queries) await nbd.call("add_meta_context", query);
    return await nbd.call("opt_list_meta_context");
  };
  expect(await listed()).toContain("base:allocation");
  expect(await listed("base:")).toEqual(["base:allocation"]);
  expect(await listed("base:allocation", "nobody:knows")).toEqual(["base:allocation"]);
  expect(await listed("base:alloc", "base", "nobody:")).toEqual([]);
});

itWith(NEEDS, "only contexts that were selected are reported, and only with structured replies", async () => {
  const connect = (...before: (readonly [string, ...unknown[]])[]) => NbdHandle.connect(server.uri, { before });
  await using none = await connect();
  expect(await none.call("can_meta_context", "base:allocation")).toBe(false);
  expect(await none.errnoOf("block_status", 512, 0)).toBe("EINVAL");
  expect(await none.errnoOf("pread", 512, 0)).toBe("OK");
  await using both = await connect(["add_meta_context", "nobody:knows"], ["add_meta_context", "base:allocation"]);
  expect(await both.call("can_meta_context", "nobody:knows")).toBe(false);
  expect((await both.blockStatus(SPARSE_BYTES, 0)).map(([name]) => name)).toEqual(["base:allocation"]);
  await using simple = await connect(
    ["set_request_structured_replies", false],
    ["add_meta_context", "base:allocation"],
  );
  expect(await simple.call("can_meta_context", "base:allocation")).toBe(false);
  expect(await simple.call("can_df")).toBe(false);
  expect(await simple.errnoOf("pread", 512, 0)).toBe("OK");
});

itWith(
  NEEDS,
  "block status tells the file's runs from any offset on; REQ_ONE gives one, within the request",
  async () => {
    await using nbd = await NbdHandle.connect(server.uri, { before: [["add_meta_context", "base:allocation"]] });
    const runs = runsOf(SPARSE_BYTES, SPARSE_REGIONS);
    const entries = (from: number, to: number) =>
      runs
        .map(({ start, length, hole }) => [Math.min(start + length, to) - Math.max(start, from), hole ? 3 : 0] as const)
        .filter(([length]) => length > 0)
        .flat();
    expect(await nbd.blockStatus(SPARSE_BYTES, 0)).toEqual([["base:allocation", 0, entries(0, SPARSE_BYTES), 0]]);
    const from = 700_001;
    const to = 4_500_007;
    expect(await nbd.blockStatus(to - from, from)).toEqual([["base:allocation", from, entries(from, to), 0]]);
    for (const { start, length, hole } of runs) {
      const [first] = await nbd.blockStatus(Math.min(length, 1000), start, REQ_ONE);
      expect(first).toEqual(["base:allocation", start, [Math.min(length, 1000), hole ? 3 : 0], 0]);
    }
  },
);

itWith(NEEDS, "handshake flags may be left out: oldest and newest clients are served", async () => {
  // 0: neither fixed newstyle nor no-zeroes, so libnbd falls back to EXPORT_NAME and reads the 124 zeroes.
  for (const flags of [0, 1, 2, 3]) {
    const before = [["set_handshake_flags", flags]] as const;
    await using nbd = await NbdHandle.connect(server.uriOf("vda"), { before });
    expect(await nbd.call("get_size")).toBe(SPARSE_BYTES);
    expect((await nbd.read(512, 4096)).equals(pattern(4096, 512))).toBe(true);
  }
});
