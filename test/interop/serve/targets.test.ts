/** What can be served besides an ordinary file: a block device, a file on tmpfs, odd and empty and enormous ones. */
import { existsSync, mkdirSync, statfsSync, statSync } from "node:fs";
import { expect, test } from "vitest";
import { fileBytes, firstDifference, imageDifference, makeImage, pattern } from "../../support/patterns.ts";
import { run, runOk } from "../../support/run.ts";
import { startServe } from "../../support/serve-process.ts";
import { tempDir } from "../../support/temp-dir.ts";
import { itWith, requireHost, requireRoot } from "../../support/tools.ts";
import { KiB, MiB, parseNbdinfoMap, runsOf, SPARSE_BYTES, SPARSE_REGIONS } from "./layout.ts";

const TiB = 2 ** 40;
const TMPFS = 0x01021994;
const NO_NATIVE = { BLOCKFERRY_NO_NATIVE: "1" };

interface Target {
  readonly image: string;
  readonly socket: string;
  readonly env?: Readonly<Record<string, string>>;
  /** Whether the map is to show the file's holes. */
  readonly extents: boolean;
  /** Whether a trim gives space back. */
  readonly discards: boolean;
}

/** What must work on any target that holds pattern 1 in `SPARSE_REGIONS` and has `SPARSE_BYTES`. */
async function basics(target: Target): Promise<void> {
  const { image, socket, env = {}, extents, discards } = target;
  await using server = await startServe({ image, socket, env });
  expect((await runOk(["nbdinfo", "--size", server.uri])).trim()).toBe(String(SPARSE_BYTES));
  const map = parseNbdinfoMap(await runOk(["nbdinfo", "--map", "--json", server.uri]));
  const all = [{ start: 0, length: SPARSE_BYTES, hole: false, zero: false }];
  expect(map).toEqual(extents ? runsOf(SPARSE_BYTES, SPARSE_REGIONS) : all);
  const io = (...commands: string[]) =>
    runOk(["qemu-io", "-f", "raw", "-d", "unmap", ...commands.flatMap((command) => ["-c", command]), server.uri]);
  await io("write -P 0xa1 4095 2", "write -f -P 0xa2 2M 70001", "read -P 0xa1 4095 2", "flush");
  await io("write -z 1048577 1000", "write -z -u 4194304 65536", "discard 6M 64k", "read -P 0 4194304 65536");
  const expected = pattern(0, 64 * KiB).fill(0xa1, 4095, 4097);
  expect(firstDifference(fileBytes(image, 0, 64 * KiB), expected)).toBeUndefined();
  expect(fileBytes(image, 2 * MiB, 70_001).equals(Buffer.alloc(70_001, 0xa2))).toBe(true);
  const edges = pattern(MiB, 4 * KiB).fill(0, 1, 1001);
  expect(firstDifference(fileBytes(image, MiB, 4 * KiB), edges)).toBeUndefined();
  expect(fileBytes(image, 4 * MiB, 64 * KiB).equals(Buffer.alloc(64 * KiB))).toBe(true);
  expect(firstDifference(fileBytes(image, 4 * MiB + 64 * KiB, KiB), pattern(4 * MiB + 64 * KiB, KiB))).toBeUndefined();
  if (discards) {
    const before = statSync(image).blocks;
    await io("discard 4259840 65536", "flush");
    expect(statSync(image).blocks).toBeLessThan(before);
  }
  expect(await server.stop()).toBe(0);
}

const BASIC_TOOLS = ["nbdinfo", "qemu-io"];

itWith(BASIC_TOOLS, "a file on the temporary folder's file system", async () => {
  using folder = tempDir();
  const image = folder.file("disk.img");
  makeImage(image, SPARSE_BYTES, SPARSE_REGIONS);
  await basics({ image, socket: folder.file("s"), extents: true, discards: true });
});

itWith(BASIC_TOOLS, "the same without native calls: no holes are seen or made, all else works", async () => {
  using folder = tempDir();
  const image = folder.file("disk.img");
  makeImage(image, SPARSE_BYTES, SPARSE_REGIONS);
  await basics({ image, socket: folder.file("s"), env: NO_NATIVE, extents: false, discards: false });
});

itWith(BASIC_TOOLS, "a file on tmpfs", async (context) => {
  const shm = "/dev/shm";
  const there = existsSync(shm) && statfsSync(shm).type === TMPFS;
  requireHost(context, there ? undefined : `needs a tmpfs at ${shm}`);
  using folder = tempDir(shm);
  const image = folder.file("disk.img");
  makeImage(image, SPARSE_BYTES, SPARSE_REGIONS);
  await basics({ image, socket: folder.file("s"), extents: true, discards: true });
  makeImage(image, SPARSE_BYTES, SPARSE_REGIONS);
  await basics({ image, socket: folder.file("s"), env: NO_NATIVE, extents: false, discards: false });
});

itWith([...BASIC_TOOLS, "losetup"], "a block device, which nobody else may then write", async (context) => {
  requireRoot(context, "attaching a loop device");
  using folder = tempDir();
  await using stack = new AsyncDisposableStack();
  const backing = folder.file("backing.img");
  makeImage(backing, SPARSE_BYTES, SPARSE_REGIONS);
  const device = (await runOk(["losetup", "--find", "--show", backing])).trim();
  stack.defer(() => runOk(["losetup", "--detach", device]).then(() => undefined));
  for (const env of [{}, NO_NATIVE]) {
    await basics({ image: device, socket: folder.file("s"), env, extents: false, discards: false });
    await runOk(["dd", `if=${backing}`, "of=/dev/null", "bs=1M", "status=none"]);
    // Back to the start, through the device, whose cache is the truth.
    makeImage(folder.file("fresh.img"), SPARSE_BYTES, SPARSE_REGIONS);
    await runOk(["dd", `if=${folder.file("fresh.img")}`, `of=${device}`, "bs=1M", "conv=fsync", "status=none"]);
  }
  await using server = await startServe({ image: device, socket: folder.file("s") });
  mkdirSync(folder.file("mnt"));
  const second = await run(["qemu-io", "-f", "raw", "-c", "write 0 4k", device]);
  expect(second.status, second.stdout).not.toBe(0);
  const mount = await run(["mount", "-t", "ext4", device, folder.file("mnt")]);
  expect(mount.stderr).toMatch(/busy|already mounted/);
  expect(await server.stop()).toBe(0);
});

itWith(["nbdinfo", "nbdcopy"], "sizes that are no multiple of a sector are kept to the byte", async () => {
  using folder = tempDir();
  for (const sizeBytes of [1, 511, 4097, MiB + 1, 3 * MiB - 1]) {
    const image = folder.file(`${sizeBytes}.img`);
    const copy = folder.file(`${sizeBytes}.copy`);
    makeImage(image, sizeBytes);
    await using server = await startServe({ image, socket: folder.file("s") });
    expect((await runOk(["nbdinfo", "--size", server.uri])).trim()).toBe(String(sizeBytes));
    await runOk(["nbdcopy", server.uri, copy]);
    expect(imageDifference(copy, sizeBytes, [{ offset: 0, length: sizeBytes, salt: 1 }])).toBeUndefined();
  }
});

test("an empty image is refused, with the way to give it a size", async () => {
  using folder = tempDir();
  makeImage(folder.file("empty.img"), 0);
  const served = startServe({ image: folder.file("empty.img"), socket: folder.file("s") });
  await expect(served).rejects.toThrow(/ended with 74[\s\S]*0 bytes long[\s\S]*truncate/);
});

itWith(
  ["nbdinfo", "qemu-io", "nbdcopy"],
  "a sparse image of 16 TiB: its map is quick, its far end works, memory stays small",
  async () => {
    using folder = tempDir();
    const image = folder.file("huge.img");
    // ext4 takes 16 TiB less one block.
    const sizeBytes = 16 * TiB - 4 * KiB;
    const regions = Array.from({ length: 64 }, (_, i) => ({ offset: i * 256 * 2 ** 30, length: 64 * KiB, salt: 1 }));
    makeImage(image, sizeBytes, regions);
    await using server = await startServe({ image, socket: folder.file("s") });
    const startMs = performance.now();
    const map = parseNbdinfoMap(await runOk(["nbdinfo", "--map", "--json", server.uri]));
    expect(performance.now() - startMs).toBeLessThan(5000);
    expect(map).toEqual(runsOf(sizeBytes, regions));
    const end = sizeBytes - 1000;
    await runOk([
      "qemu-io",
      "-f",
      "raw",
      "-c",
      `write -P 0xee ${end} 1000`,
      "-c",
      `read -P 0xee ${end} 1000`,
      server.uri,
    ]);
    expect(fileBytes(image, end, 1000).equals(Buffer.alloc(1000, 0xee))).toBe(true);
    await runOk(["nbdcopy", server.uri, "null:"]);
    expect(server.memory().peakBytes).toBeLessThan(200 * MiB);
  },
);
