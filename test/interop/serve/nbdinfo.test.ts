/** What clients that only ask are told: nbdinfo, qemu-nbd --list, qemu-img info and map. */
import { afterAll, beforeAll, expect } from "vitest";
import { makeImage } from "../../support/patterns.ts";
import { run, runOk } from "../../support/run.ts";
import { type ServeProcess, startServe } from "../../support/serve-process.ts";
import { tempDir } from "../../support/temp-dir.ts";
import { itWith } from "../../support/tools.ts";
import { parseNbdinfoMap, parseQemuMap, runsOf, SPARSE_BYTES, SPARSE_REGIONS } from "./layout.ts";

const folder = tempDir();
const image = folder.file("disk.img");
let writable: ServeProcess;
let readOnly: ServeProcess;

beforeAll(async () => {
  makeImage(image, SPARSE_BYTES, SPARSE_REGIONS);
  makeImage(folder.file("frozen.img"), SPARSE_BYTES, SPARSE_REGIONS);
  const frozen = { image: folder.file("frozen.img"), socket: folder.file("r.sock"), flags: ["-r"] };
  [writable, readOnly] = await Promise.all([
    startServe({ image, socket: folder.file("w.sock"), flags: ["-x", "vda"] }),
    startServe(frozen),
  ]);
});

afterAll(async () => {
  await Promise.all([writable.kill(), readOnly.kill()]);
  folder[Symbol.dispose]();
});

interface ExportInfo {
  readonly [key: string]: unknown;
}

async function infoOf(uri: string, ...flags: string[]): Promise<{ exports: ExportInfo[]; [key: string]: unknown }> {
  return JSON.parse(await runOk(["nbdinfo", "--json", ...flags, uri]));
}

itWith(["nbdinfo"], "nbdinfo --json tells size, block sizes and abilities of a writable export", async () => {
  const info = await infoOf(writable.uri);
  expect(info).toMatchObject({ protocol: "newstyle-fixed", TLS: false, structured: true });
  expect(info.exports).toHaveLength(1);
  expect(info.exports[0]).toMatchObject({
    "export-name": "",
    "export-size": SPARSE_BYTES,
    contexts: ["base:allocation"],
    is_read_only: false,
    is_rotational: false,
    can_cache: true,
    can_df: true,
    can_fast_zero: true,
    can_flush: true,
    can_fua: true,
    can_multi_conn: true,
    can_trim: true,
    can_zero: true,
    block_size_minimum: 1,
    block_size_preferred: 4096,
    block_size_maximum: 64 * 1024 * 1024,
  });
});

itWith(["nbdinfo"], "a read-only export offers nothing that writes", async () => {
  const info = await infoOf(readOnly.uri);
  expect(info.exports[0]).toMatchObject({
    "export-size": SPARSE_BYTES,
    is_read_only: true,
    can_trim: false,
    can_zero: false,
    can_fast_zero: false,
    can_multi_conn: true,
  });
});

itWith(["nbdinfo"], "--can, --is and --size answer scripts by their exit status", async () => {
  const statusOf = async (server: ServeProcess, ...question: string[]) =>
    (await run(["nbdinfo", ...question, server.uri])).status;
  const yes = ["cache", "df", "fast-zero", "flush", "fua", "multi-conn", "read", "trim", "write", "zero"];
  for (const ability of yes) {
    expect(await statusOf(writable, "--can", ability), `--can ${ability}`).toBe(0);
  }
  expect(await statusOf(writable, "--is", "read-only")).toBe(2);
  expect(await statusOf(writable, "--is", "tls")).toBe(2);
  expect(await statusOf(readOnly, "--is", "read-only")).toBe(0);
  expect(await statusOf(readOnly, "--can", "write")).toBe(2);
  expect((await runOk(["nbdinfo", "--size", writable.uri])).trim()).toBe(String(SPARSE_BYTES));
});

itWith(["nbdinfo", "qemu-img"], "the map of a sparse file is the file's own, whoever asks", async () => {
  const expected = runsOf(SPARSE_BYTES, SPARSE_REGIONS);
  const local = parseQemuMap(await runOk(["qemu-img", "map", "--output=json", "-U", "-f", "raw", image]));
  expect(local).toEqual(expected);
  expect(parseNbdinfoMap(await runOk(["nbdinfo", "--map", "--json", writable.uri]))).toEqual(expected);
  expect(parseQemuMap(await runOk(["qemu-img", "map", "--output=json", "-f", "raw", writable.uri]))).toEqual(expected);
});

itWith(["nbdinfo"], "--list shows the default export and the named one, alike", async () => {
  const info = await infoOf(writable.uri, "--list");
  expect(info.exports.map((entry) => entry["export-name"]).sort()).toEqual(["", "vda"]);
  expect(info.exports.map((entry) => entry["export-size"])).toEqual([SPARSE_BYTES, SPARSE_BYTES]);
  const named = await infoOf(writable.uriOf("vda"));
  expect(named.exports[0]).toMatchObject({ "export-name": "vda", "export-size": SPARSE_BYTES });
});

itWith(["nbdinfo"], "an export that does not exist is an error that names it, near misses included", async () => {
  for (const name of ["nope", "vd", "vdaa", "VDA", "vda/", "../disk.img"]) {
    const result = await run(["nbdinfo", writable.uriOf(name)]);
    expect(result.status, name).toBe(1);
    expect(result.stderr).toContain("No such file or directory");
  }
  expect((await run(["nbdinfo", "--map=x-nobody:knows", writable.uri])).status).toBe(1);
});

itWith(["qemu-nbd"], "qemu-nbd --list shows both exports with their flags", async () => {
  const listed = await runOk(["qemu-nbd", "--list", "-k", writable.socket]);
  expect(listed).toContain("exports available: 2");
  expect(listed).toContain("export: ''");
  expect(listed).toContain("export: 'vda'");
  expect(listed).toContain(`size:  ${SPARSE_BYTES}`);
  expect(listed).toMatch(/flags: 0x[0-9a-f]+ \( flush fua trim zeroes df multi cache fast-zero \)/);
  expect(listed.match(/base:allocation/g)).toHaveLength(2);
  const frozen = await runOk(["qemu-nbd", "--list", "-k", readOnly.socket]);
  expect(frozen).toMatch(/flags: 0x[0-9a-f]+ \( readonly flush fua df multi cache \)/);
});

itWith(["qemu-img", "qemu-io"], "QEMU opens a read-only export read-only, and only so", async () => {
  expect(await runOk(["qemu-img", "info", readOnly.uri])).toContain(`(${SPARSE_BYTES} bytes)`);
  const read = await runOk(["qemu-io", "-r", "-f", "raw", "-c", "read 4M 64k", readOnly.uri]);
  expect(read).toContain("65536/65536 bytes at offset 4194304");
  const write = await run(["qemu-io", "-f", "raw", "-c", "write 0 4k", readOnly.uri]);
  expect(write.status).toBe(1);
  expect(write.stderr).toMatch(/read-only|permission/i);
});
