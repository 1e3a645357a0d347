import { describe, expect, test } from "vitest";
import type { NbdClient } from "../../../../src/nbd/client/client.ts";
import { ConnectionLostError } from "../../../../src/nbd/client/errors.ts";
import { listExports } from "../../../../src/nbd/client/list-exports.ts";
import { NBD_FLAG_SEND_FUA } from "../../../../src/nbd/constants.ts";
import { makeImage, pattern } from "../../../support/patterns.ts";
import { nbdkit, realWorld } from "../../../support/peers.ts";
import { itSeeded } from "../../../support/seed.ts";
import { tempDir } from "../../../support/temp-dir.ts";
import { hasTool, itWith, requireTools } from "../../../support/tools.ts";
import { bytesOf, outcomeOf } from "./outcome.ts";

const MIB = 1 << 20;
const it = (title: string, body: () => Promise<void>): void => itWith(["nbdkit"], title, body);

/** Where extents that are not zero begin, as a walk over the whole disk tells. */
async function dataPlaces(client: NbdClient, countMax: number): Promise<number[]> {
  const places: number[] = [];
  for (let at = 0; at < client.sizeBytes; ) {
    for (const extent of await client.extents(at, client.sizeBytes - at, countMax)) {
      if (!extent.zero) places.push(at);
      at += extent.length;
    }
  }
  return places;
}

describe("with nbdkit", () => {
  it("every kind of request works, in every dialect it has", async () => {
    for (const [flags, dialect] of [
      [[], "structured"],
      [["--no-sr"], "simple"],
    ] as const) {
      await using peer = await nbdkit(...flags, "memory", "64M");
      await using client = await peer.open();
      expect(client.dialect).toBe(dialect);
      expect(client.sizeBytes).toBe(64 * MIB);
      expect(client.capabilities).toMatchObject({ readOnly: false, discard: true, fastZero: true });
      await client.write(1_000_001, pattern(1_000_001, 5_000_003), { fua: true });
      expect((await bytesOf(client, 1_000_001, 5_000_003)).equals(pattern(1_000_001, 5_000_003))).toBe(true);
      expect((await bytesOf(client, 0, 1_000_001)).equals(Buffer.alloc(1_000_001))).toBe(true);
      await client.writeZeroes(2_000_000, 1_000_000, { noHole: true });
      expect((await bytesOf(client, 2_000_000, 1_000_000)).equals(Buffer.alloc(1_000_000))).toBe(true);
      await client.discard(4_000_000, 1_000_000);
      await client.cache(0, 64 * MIB);
      await client.flush();
      expect((await bytesOf(client, 5_000_000, 1_000_000)).equals(pattern(5_000_000, 1_000_000))).toBe(true);
      const [first] = await client.extents(0, 64 * MIB, 100);
      const told = dialect === "structured";
      expect(first).toMatchObject(told ? { hole: true, zero: true } : { length: 64 * MIB, hole: false, zero: false });
      await client.close();
      expect(client.state).toBe("closed");
    }
  });

  it("a sparse disk of terabytes tells its extents, one by one or many at a time", async () => {
    await using peer = await nbdkit("memory", "2T");
    await using client = await peer.open();
    const places = [0, 2 ** 32, 2 ** 40 + 2 ** 32, 2 ** 41 - 65_536];
    for (const at of places) await client.write(at, pattern(at, 65_536));
    for (const countMax of [1, 1000]) expect(await dataPlaces(client, countMax)).toEqual(places);
    for (const at of places) expect((await bytesOf(client, at, 65_536)).equals(pattern(at, 65_536))).toBe(true);
    await client.writeZeroes(0, client.sizeBytes);
    expect((await bytesOf(client, 2 ** 40 + 2 ** 32, 65_536)).equals(Buffer.alloc(65_536))).toBe(true);
  });

  test("data of its pattern plugin arrives as it is there, many requests at a time", async (context) => {
    requireTools(context, ["nbdkit"]);
    await using peer = await nbdkit("pattern", "1G");
    await using client = await peer.open({ inFlightMax: 16 });
    const reads = Array.from({ length: 300 }, async (_, index) => {
      const offset = (index * 7_919_816) % (1 << 29);
      const bytes = await bytesOf(client, offset - (offset % 8), 8192);
      for (let at = 0; at < bytes.length; at += 8) {
        if (bytes.readBigUInt64BE(at) !== BigInt(offset - (offset % 8) + at)) return false;
      }
      return true;
    });
    expect(new Set(await Promise.all(reads))).toEqual(new Set([true]));
  });

  it("a strict minimum block size is respected, and any request works all the same", async () => {
    const sizes = ["blocksize-minimum=4096", "blocksize-preferred=65536", "blocksize-maximum=131072"];
    const policy = ["blocksize-error-policy=error", ...sizes];
    await using peer = await nbdkit("--filter=blocksize-policy", "memory", "16M", ...policy);
    await using client = await peer.open();
    expect(client.info.blockSizes).toEqual({ minimum: 4096, preferred: 65_536, maximum: 131_072 });
    await client.write(0, pattern(0, 3 * MIB, 1));
    await client.write(5000, pattern(5000, 10, 2));
    await client.write(MIB + 1, pattern(MIB + 1, 700_000, 2));
    await client.writeZeroes(2 * MIB + 1, 100_000);
    const expected = pattern(0, 3 * MIB, 1);
    pattern(5000, 10, 2).copy(expected, 5000);
    pattern(MIB + 1, 700_000, 2).copy(expected, MIB + 1);
    expected.fill(0, 2 * MIB + 1, 2 * MIB + 100_001);
    expect((await bytesOf(client, 0, 3 * MIB)).equals(expected)).toBe(true);
    expect((await bytesOf(client, 4999, 13)).equals(expected.subarray(4999, 5012))).toBe(true);
    const [extent] = await client.extents(3 * MIB + 5, 10 * MIB, 1);
    expect(extent).toEqual({ length: 10 * MIB, hole: true, zero: true });
  });

  it("reads that fail are told as failing, and the connection lives", async () => {
    await using peer = await nbdkit("--filter=error", "pattern", "64M", "error-pread=EIO", "error-pread-rate=50%");
    await using client = await peer.open();
    const outcomes = await Promise.all(
      Array.from({ length: 200 }, () => outcomeOf(client.read(0, Buffer.alloc(4096)))),
    );
    const failed = outcomes.filter((outcome) => outcome !== "success");
    expect(failed.length).toBeGreaterThan(20);
    expect(failed.length).toBeLessThan(180);
    for (const error of failed) expect(error).toMatchObject({ name: "BlockError", code: "io" });
    expect(client.state).toBe("open");
  });

  it("each error of a server has its meaning here", async () => {
    for (const [name, code] of [
      ["EPERM", "permission"],
      ["EIO", "io"],
      ["ENOMEM", "no-memory"],
      ["ENOSPC", "no-space"],
      ["EINVAL", "invalid"],
    ] as const) {
      await using peer = await nbdkit("--filter=error", "memory", "1M", `error-pwrite=${name}`, "error-pwrite-rate=1");
      await using client = await peer.open();
      expect(await outcomeOf(client.write(0, pattern(0, 512)))).toMatchObject({ code });
    }
  });

  it("slow replies come back to the right requests", async () => {
    await using peer = await nbdkit("--filter=delay", "pattern", "64M", "rdelay=20ms");
    await using client = await peer.open({ stallTimeoutMs: 10_000 });
    const reads = Array.from({ length: 32 }, async (_, index) => {
      const bytes = await bytesOf(client, index * 65_536, 512);
      return bytes.readBigUInt64BE(0) === BigInt(index * 65_536);
    });
    expect(new Set(await Promise.all(reads))).toEqual(new Set([true]));
  });

  it("a server that never answers is noticed after the time allowed", async () => {
    await using peer = await nbdkit("--filter=delay", "memory", "1M", "rdelay=1000");
    await using client = await peer.open({ stallTimeoutMs: 100 });
    expect(await outcomeOf(client.read(0, Buffer.alloc(512)))).toBeInstanceOf(ConnectionLostError);
  });

  it("a server that is killed is a link lost, for everything pending", async () => {
    await using peer = await nbdkit("--filter=delay", "memory", "1M", "rdelay=1000");
    await using client = await peer.open();
    const lost = new Promise((resolve) => client.onLost(resolve));
    const outcomes = Array.from({ length: 100 }, () => outcomeOf(client.read(0, Buffer.alloc(512))));
    await peer.kill();
    for (const error of await Promise.all(outcomes)) expect(error).toBeInstanceOf(ConnectionLostError);
    expect(await lost).toBeInstanceOf(ConnectionLostError);
    expect(client.state).toBe("dead");
  });

  it("what it lacks is made up for: FUA, zeroes, trim, FLUSH", async () => {
    await using fua = await nbdkit("--filter=fua", "memory", "1M");
    await using one = await fua.open();
    expect(one.info.flags & NBD_FLAG_SEND_FUA).toBe(0);
    await one.write(0, pattern(0, 4096), { fua: true });
    await using zero = await nbdkit("--filter=nozero", "memory", "4M", "zeromode=none");
    await using two = await zero.open();
    await two.write(0, pattern(0, 4 * MIB));
    await two.writeZeroes(1, 3 * MIB, { fua: true });
    expect((await bytesOf(two, 1, 3 * MIB)).equals(Buffer.alloc(3 * MIB))).toBe(true);
    expect(await outcomeOf(two.writeZeroes(0, 512, { fastOnly: true }))).toMatchObject({ code: "not-supported" });
    await using readOnly = await nbdkit("-r", "data", "data=1 2 3", "size=1M");
    await using three = await readOnly.open();
    expect(three.capabilities.readOnly).toBe(true);
    expect(await outcomeOf(three.write(0, pattern(0, 512)))).toMatchObject({ code: "read-only" });
    expect((await bytesOf(three, 0, 4)).equals(Buffer.from([1, 2, 3, 0]))).toBe(true);
  });

  it("a newstyle server of old is entered by name, an oldstyle one is refused", async () => {
    for (const mask of ["0", "1", "2", "3"]) {
      await using peer = await nbdkit(`--mask-handshake=${mask}`, "pattern", "1M");
      await using client = await peer.open();
      expect(client.sizeBytes).toBe(MIB);
      expect((await bytesOf(client, 65_536, 8)).readBigUInt64BE(0)).toBe(65_536n);
    }
    await using old = await nbdkit("--oldstyle", "memory", "1M");
    expect(await outcomeOf(old.open())).toMatchObject({ code: "oldstyle" });
  });

  it("exports are listed, with details, and opened by their exact names", async () => {
    using folder = tempDir();
    for (const [name, sizeBytes] of [
      ["a", MIB],
      ["b ä", 2 * MIB],
    ] as const) {
      makeImage(folder.file(name), sizeBytes);
    }
    await using peer = await nbdkit("file", `dir=${folder.path}`);
    const { address } = peer;
    const names = await listExports(realWorld, { address });
    expect(names.map(({ name }) => name).sort()).toEqual(["a", "b ä"]);
    const details = await listExports(realWorld, { address, details: true });
    const sizes = details.map(({ name, info, contexts }) => [
      name,
      info?.sizeBytes,
      contexts?.includes("base:allocation"),
    ]);
    expect(sizes.sort()).toEqual([
      ["a", MIB, true],
      ["b ä", 2 * MIB, true],
    ]);
    await using client = await peer.open({ exportName: "b ä" });
    expect((await bytesOf(client, 4096, 4096)).equals(pattern(4096, 4096))).toBe(true);
    for (const exportName of ["c", "A", "a/", "../a"]) {
      expect(await outcomeOf(peer.open({ exportName }))).toMatchObject({ name: "NbdConnectError" });
    }
  });

  it("a disk of more than 2^53−1 bytes is refused", async () => {
    await using peer = await nbdkit("pattern", "9007199254740992");
    expect(await outcomeOf(peer.open())).toMatchObject({ code: "bad-export" });
    await using largest = await nbdkit("pattern", "9007199254740991");
    await using client = await largest.open();
    expect(client.sizeBytes).toBe(Number.MAX_SAFE_INTEGER);
    const lastWord = Number.MAX_SAFE_INTEGER - 15;
    expect((await bytesOf(client, lastWord, 8)).readBigUInt64BE(0)).toBe(BigInt(lastWord));
  });
});

if (hasTool("nbdkit")) {
  itSeeded("with nbdkit any mixture of requests at once leaves the disk as a model says", async (rng) => {
    await using peer = await nbdkit("memory", "4M");
    await using client = await peer.open();
    const model = Buffer.alloc(4 * MIB);
    for (let round = 0; round < 20; round++) {
      // Operations of a round do not overlap: each has a lane of its own.
      const lanes = Array.from({ length: 16 }, async (_, lane) => {
        const offset = lane * 262_144 + rng.integer(0, 1000);
        const length = rng.integer(1, 200_000);
        if (rng.chance(0.25)) {
          await client.writeZeroes(offset, length);
          model.fill(0, offset, offset + length);
        } else if (rng.chance(0.5)) {
          const bytes = pattern(offset, length, 1 + rng.integer(0, 1000));
          await client.write(offset, bytes, { fua: rng.chance(0.2) });
          bytes.copy(model, offset);
        } else {
          const found = await bytesOf(client, offset, length);
          expect(found.equals(model.subarray(offset, offset + length))).toBe(true);
        }
      });
      await Promise.all(lanes);
    }
    expect((await bytesOf(client, 0, 4 * MIB)).equals(model)).toBe(true);
  });
}
