/** Sources that nobody here wrote: whatever serves it, and however it is laid out, the copy is the same disk. */
import { existsSync, statSync, writeFileSync } from "node:fs";
import { describe, expect, type TestContext } from "vitest";
import { allocatedBytes, bytesOf, expectSame, placeIn, uriOf } from "../../support/clone-checks.ts";
import { runClone, startClone } from "../../support/clone-process.ts";
import { makeImage, pattern } from "../../support/patterns.ts";
import { nbdkit, nbdServer, type Peer, qemuNbd } from "../../support/peers.ts";
import { runOk } from "../../support/run.ts";
import { counts, runSeed } from "../../support/seed.ts";
import { BLOCKFERRY } from "../../support/serve-process.ts";
import { tempDir } from "../../support/temp-dir.ts";
import { itWith, requireHost } from "../../support/tools.ts";
import { KiB, MiB } from "../serve/layout.ts";

const GiB = 2 ** 30;
const VAST = counts({ local: 128, ci: 1024 });

/** Data here and there, with holes between; neither begins nor ends at round places. */
const SPARSE = [
  { offset: 0, length: 100 * KiB + 512, salt: 3 },
  { offset: 2 * MiB + 1536, length: 4 * KiB, salt: 4 },
  { offset: 3 * MiB + 20 * KiB, length: 8 * KiB, salt: 6 },
  { offset: 5 * MiB, length: MiB, salt: 5 },
];
const SPARSE_BYTES = 8 * MiB;

/** A finished copy of `source`, which QEMU finds equal. */
async function expectCopied(source: Peer, flags: readonly string[] = [], exportName = ""): Promise<void> {
  using folder = tempDir();
  const place = placeIn(folder, uriOf(source, exportName));
  const { status, stderr } = await runClone({ ...place, flags: ["--exit-when-hydrated", ...flags] });
  // Without native calls, that is said.
  expect(stderr.replace(/^.*without native calls, .*\n/, "")).toBe("");
  expect(status).toBe(0);
  await expectSame(place.image, place.source);
}

/** Without native calls zeroes are written out, and this much of them would fill the disk. */
function requireHoles(context: TestContext): void {
  const without = process.env["BLOCKFERRY_NO_NATIVE"] === "1";
  requireHost(context, without ? "needs holes, which native calls make: unset BLOCKFERRY_NO_NATIVE" : undefined);
}

itWith(["nbdkit", "qemu-img"], "a full disk becomes the same image, which then stands alone", async () => {
  const sizeBytes = counts({ local: 64, ci: 1024 }) * MiB;
  await using source = await nbdkit("pattern", String(sizeBytes));
  using folder = tempDir();
  const place = placeIn(folder, source);
  const { status, stdout } = await runClone({ ...place, flags: ["--exit-when-hydrated"] });
  expect({ status, stdout }).toEqual({ status: 0, stdout: `nbd+unix:///?socket=${place.socket}\n` });
  expect(statSync(place.image).size).toBe(sizeBytes);
  await expectSame(place.image, place.source);
  await source.kill();
  // A plain raw disk for everybody, with its map or without.
  await runOk([BLOCKFERRY, "image", "info", place.image]);
  await runOk(["qemu-io", "-f", "raw", "-c", "read 0 4k", place.image]);
  await runOk(["rm", `${place.image}.map`, `${place.image}.log`]);
  await runOk([BLOCKFERRY, "serve", "--run", "nbdinfo --size $uri", place.image]);
});

itWith(["nbdkit", "qemu-img"], `${VAST} GiB with little in it are copied sparse, and in seconds`, async (context) => {
  requireHoles(context);
  const percent = counts({ local: 0.004, ci: 0.01 });
  await using source = await nbdkit(
    "sparse-random",
    `${VAST}G`,
    `percent=${percent}`,
    "runlength=65536",
    `seed=${runSeed()}`,
  );
  using folder = tempDir();
  const place = placeIn(folder, source);
  const { status } = await runClone({ ...place, flags: ["--exit-when-hydrated"] });
  expect(status).toBe(0);
  expect(statSync(place.image).size).toBe(VAST * GiB);
  await expectSame(place.image, place.source);
  const [data] = JSON.parse(await runOk(["nbdinfo", "--map", "--totals", "--json", place.source])) as [
    { size: number; type: number },
  ];
  expect(data.type).toBe(0);
  expect(data.size).toBeGreaterThan(MiB);
  expect(allocatedBytes(place.image)).toBeGreaterThanOrEqual(data.size);
  // What the file system needs to find so many pieces comes on top.
  expect(allocatedBytes(place.image)).toBeLessThan(data.size * 1.25);
});

describe("sizes that are no multiple of anything are copied to the byte", () => {
  const sizes = [1, 511, 4097, 513, 4095, MiB + 1, 2 * MiB - 511];
  for (const sizeBytes of sizes.slice(0, counts({ local: 3, ci: sizes.length }))) {
    itWith(["nbdkit", "nbdcopy"], `${sizeBytes} bytes`, async () => {
      await using source = await nbdkit("pattern", String(sizeBytes));
      using folder = tempDir();
      await runOk(["nbdcopy", uriOf(source), folder.file("expected")]);
      const place = placeIn(folder, source);
      {
        await using clone = await startClone(place);
        await runOk(["nbdcopy", clone.uri, folder.file("served")]);
        await clone.hydrated();
        expect(await clone.stop()).toBe(0);
      }
      expect(statSync(place.image).size).toBe(sizeBytes);
      await runOk(["cmp", folder.file("expected"), place.image]);
      await runOk(["cmp", folder.file("expected"), folder.file("served")]);
    });
  }
});

describe("a source with blocks of its own size is only asked for whole ones", () => {
  for (const [minimum, clusterSize] of [
    [512, "512"],
    [4096, "4K"],
    [65536, "4K"],
  ] as const) {
    itWith(["nbdkit"], `${minimum} bytes, clusters of ${clusterSize}`, async () => {
      const policy = [`blocksize-minimum=${minimum}`, "blocksize-preferred=64K", "blocksize-error-policy=error"];
      await using source = await nbdkit("--filter=blocksize-policy", "pattern", "4M", ...policy);
      using folder = tempDir();
      const place = placeIn(folder, source);
      await using clone = await startClone({ ...place, flags: [`--cluster-size=${clusterSize}`, "--rate=256K"] });
      await using client = await clone.open();
      // A guest's blocks are its own affair.
      const written = pattern(3 * MiB + 77, 100, 9);
      await client.write(3 * MiB + 77, written);
      expect(Number((await bytesOf(client, 3 * MiB - 8, 8)).readBigUInt64BE())).toBe(3 * MiB - 8);
      await clone.call("set-speed", { bytesPerSecond: null });
      await clone.hydrated();
      expect((await bytesOf(client, 3 * MiB + 77, 100)).equals(written)).toBe(true);
      await client.write(3 * MiB + 77, await patternOf(source, 3 * MiB + 77, 100));
      await client.close();
      expect(await clone.stop()).toBe(0);
      await expectSame(place.image, place.source);
    });
  }
});

/** The source's own bytes, past its minimum block size. */
async function patternOf(source: Peer, offset: number, length: number): Promise<Buffer> {
  await using client = await source.open();
  const bytes = Buffer.alloc(65536);
  const start = offset - (offset % bytes.length);
  await client.read(start, bytes);
  return bytes.subarray(offset - start, offset - start + length);
}

describe("a server that knows less of the protocol is enough", () => {
  for (const [what, flags] of [
    ["no structured replies", ["--no-sr"]],
    ["no block status", ["--filter=noextents"]],
    ["one connection that can do one thing at a time", ["--filter=noparallel", "serialize=all-requests"]],
  ] as const) {
    itWith(["nbdkit", "qemu-img"], what, async () => {
      using folder = tempDir();
      makeImage(folder.file("disk"), SPARSE_BYTES, SPARSE);
      const nbdkitFlags = flags.filter((flag) => flag.startsWith("-"));
      const more = flags.filter((flag) => !flag.startsWith("-"));
      await using source = await nbdkit("-r", ...nbdkitFlags, "file", folder.file("disk"), ...more);
      await expectCopied(source);
    });
  }
});

describe("disks of other servers", () => {
  itWith(["qemu-nbd", "qemu-img", "qemu-io"], "qemu-nbd, of a qcow2 with a backing file and holes", async () => {
    using backing = tempDir();
    makeImage(backing.file("base.raw"), SPARSE_BYTES, SPARSE);
    const prepare = async (image: string): Promise<void> => {
      const base = ["-b", backing.file("base.raw"), "-F", "raw"];
      await runOk(["qemu-img", "create", "-q", "-f", "qcow2", ...base, image, String(SPARSE_BYTES)]);
      const writes = ["-c", "write -q -P 0x5a 1M 200k", "-c", "write -q -z 5M 64k"];
      await runOk(["qemu-io", "-f", "qcow2", ...writes, image]);
    };
    await using source = await qemuNbd(prepare, "-f", "qcow2", "-r");
    // Clusters that are holes and data both.
    await expectCopied(source, ["--cluster-size=64K"]);
  });

  itWith(["nbd-server", "qemu-img"], "nbd-server", async () => {
    const prepare = (image: string): void => makeImage(image, SPARSE_BYTES, SPARSE);
    await using source = await nbdServer(prepare, ["readonly = true"]);
    await expectCopied(source, [], "disk");
  });
});

itWith(["nbdkit", "qemu-img"], "what is a hole in the source takes no room in the copy", async (context) => {
  requireHoles(context);
  using folder = tempDir();
  makeImage(folder.file("disk"), SPARSE_BYTES, SPARSE);
  await using source = await nbdkit("-r", "file", folder.file("disk"));
  const place = placeIn(folder, source);
  expect((await runClone({ ...place, flags: ["--exit-when-hydrated"] })).status).toBe(0);
  await expectSame(place.image, place.source);
  expect(Math.abs(allocatedBytes(place.image) - allocatedBytes(folder.file("disk")))).toBeLessThanOrEqual(16 * KiB);
});

itWith(
  ["nbdkit"],
  "a source of no bytes, and one that is not there, are refused and leave nothing behind",
  async () => {
    await using source = await nbdkit("null", "0");
    using folder = tempDir();
    const empty = await runClone(placeIn(folder, source));
    expect(empty).toMatchObject({ status: 74, stderr: expect.stringContaining("0 bytes") });
    const absent = await runClone(placeIn(folder, `nbd+unix:///?socket=${folder.file("nobody")}`));
    expect(absent.status).toBe(69);
    expect(existsSync(folder.file("copy.raw"))).toBe(false);
    expect(existsSync(folder.file("copy.raw.map"))).toBe(false);
    writeFileSync(folder.file("copy.raw"), "something that is mine");
    expect((await runClone(placeIn(folder, source))).status).toBe(74);
  },
);
