/**
 * The source is slow, goes away, and comes back: what is local goes on as ever, what is missing waits or fails as the
 * policy says, and nothing is wrong or lost in the end.
 */
import { describe, expect } from "vitest";
import { formatAddress } from "../../../src/env/links.ts";
import type { NbdClient } from "../../../src/nbd/client/client.ts";
import { startLine } from "../../../tools/line/client.ts";
import {
  bytesOf,
  diskOf,
  letPass,
  missingOf,
  othersThan,
  placeIn,
  rangesDifference,
  totalOf,
  untilDisk,
} from "../../support/clone-checks.ts";
import { startClone } from "../../support/clone-process.ts";
import { makeImage, pattern } from "../../support/patterns.ts";
import { nbdkit, nbdkitIn, type Peer } from "../../support/peers.ts";
import { runOk } from "../../support/run.ts";
import { counts, runSeed } from "../../support/seed.ts";
import { type TempDir, tempDir } from "../../support/temp-dir.ts";
import { itWith, requireAsked } from "../../support/tools.ts";

const MiB = 2 ** 20;
const SIZE = 16 * MiB;
const SALT = 61;
/** What "at once" is on a machine that does other things too. A source that is waited for takes longer by far. */
const AT_ONCE_MS = counts({ local: 2000, ci: 20_000 });
const NOTICED_MS = 15_000;

const contents = (offset: number, length: number): Buffer => pattern(offset, length, SALT);

/** A source in `folder` that can go and come back at the same address. */
function begin(folder: TempDir): Promise<Peer> {
  return nbdkitIn(folder, "-r", "file", folder.file("disk"));
}

function makeDisk(folder: TempDir): void {
  makeImage(folder.file("disk"), SIZE, [{ offset: 0, length: SIZE, salt: SALT }]);
}

function uriIn(folder: TempDir): string {
  return `nbd+unix:///?socket=${folder.file("nbd")}`;
}

async function atOnce(what: string, work: Promise<unknown>): Promise<void> {
  const startMs = performance.now();
  await work;
  expect(performance.now() - startMs, what).toBeLessThan(AT_ONCE_MS);
}

/** Reads, covering writes and zeroes at `at`, and a flush: all of that needs nobody. `at` is 4 KiB-aligned. */
async function expectIndependent(client: NbdClient, at: number): Promise<void> {
  await atOnce("a covering write", client.write(at, contents(at, 8192)));
  await atOnce("a read of what is local", expectContents(client, at, 8192));
  await atOnce("a partial write of what is local", client.write(at + 100, contents(at + 100, 1000)));
  await atOnce("zeroes", client.writeZeroes(at + 8192, 4096));
  await atOnce("a discard", client.discard(at + 12_288, 4096));
  await atOnce("a write over zeroes", client.write(at + 8192, contents(at + 8192, 8192)));
  await atOnce("a flush", client.flush());
}

async function expectContents(client: NbdClient, offset: number, length: number): Promise<void> {
  expect((await bytesOf(client, offset, length)).equals(contents(offset, length))).toBe(true);
}

describe("a source that goes away and comes back", () => {
  itWith(["nbdkit", "fio"], "is not noticed by fio, which verifies every byte, nor by anybody in the end", async () => {
    using folder = tempDir();
    makeDisk(folder);
    const place = placeIn(folder, uriIn(folder));
    let source = await begin(folder);
    await using clone = await startClone({ ...place, flags: ["--rate=1M"] });
    const fixed = ["--name=job", "--ioengine=nbd", "--thread", "--verify=crc32c", `--randseed=${runSeed() + 1}`];
    const load = ["--rw=randrw", "--rwmixread=50", "--bsrange=512-32k", "--bs_unaligned", "--iodepth=8", "--fsync=32"];
    const where = [`--aux-path=${folder.path}`, `--uri=${clone.uri}`, `--size=${SIZE / 2}`, "--rate=1m,1m"];
    const fio = runOk(["fio", ...fixed, ...load, ...where], { timeoutMs: 100_000 });
    for (let cut = 0; cut < counts({ local: 2, ci: 4 }); cut++) {
      await letPass(clone, 0.5);
      await source.kill();
      await untilDisk(clone, (disk) => disk.source?.state === "disconnected");
      await letPass(clone, 0.5);
      source = await begin(folder);
      await untilDisk(clone, (disk) => disk.source?.state === "connected");
    }
    await using _ = source;
    await fio;
    expect((await diskOf(clone)).source?.reconnects).toBeGreaterThanOrEqual(2);
    await clone.call("set-speed", { bytesPerSecond: null });
    await clone.hydrated();
    expect(await clone.stop()).toBe(0);
    const rest = [{ offset: SIZE / 2, length: SIZE / 2 }];
    expect(rangesDifference(place.image, rest, contents)).toBeUndefined();
  });

  itWith(["nbdkit"], "stalls reads of what is missing and nothing else, and answers them when it is back", async () => {
    using folder = tempDir();
    makeDisk(folder);
    const place = placeIn(folder, uriIn(folder));
    const source = await begin(folder);
    await using clone = await startClone({ ...place, flags: ["--rate=64K"] });
    await using client = await clone.open();
    await expectContents(client, 4 * MiB, 4096);
    await source.kill();
    const away = await untilDisk(clone, (disk) => disk.source?.state === "disconnected");
    expect(away.hydration).toMatchObject({ state: "stalled", stalledReason: "the source is away" });
    const stalled = [8 * MiB, 9 * MiB + 512, 10 * MiB - 4096].map((offset) => {
      const read = { done: false, whole: expectContents(client, offset, 6000) };
      void read.whole.finally(() => {
        read.done = true;
      });
      return read;
    });
    await expectContents(client, 4 * MiB, 4096);
    for (let at = 12; at < 15; at++) await expectIndependent(client, at * MiB);
    // What is missing is exactly what is not here.
    const missing = await missingOf(clone);
    expect(totalOf(missing)).toBe((await diskOf(clone)).missingBytes);
    expect(rangesDifference(place.image, othersThan(missing, SIZE), contents)).toBeUndefined();
    expect(stalled.map(({ done }) => done)).toEqual([false, false, false]);
    await using _ = await begin(folder);
    await Promise.all(stalled.map(({ whole }) => whole));
    await clone.call("set-speed", { bytesPerSecond: null });
    await clone.hydrated();
    await client.close();
    expect(await clone.stop()).toBe(0);
    expect(rangesDifference(place.image, [{ offset: 0, length: SIZE }], contents)).toBeUndefined();
  });

  itWith(
    ["nbdkit"],
    "fails reads of exactly what is missing after the deadline, if so told, until it is back",
    async () => {
      using folder = tempDir();
      makeDisk(folder);
      const place = placeIn(folder, uriIn(folder));
      const source = await begin(folder);
      const flags = ["--rate=2M", "--on-source-loss=eio", "--source-loss-deadline=1s"];
      await using clone = await startClone({ ...place, flags });
      await using client = await clone.open();
      await untilDisk(clone, ({ localBytes }) => localBytes >= MiB);
      await client.write(12 * MiB, contents(12 * MiB, 8192));
      await source.kill();
      const lostMs = performance.now();
      await expect(client.read(8 * MiB, new Uint8Array(512))).rejects.toMatchObject({ code: "io" });
      expect(performance.now() - lostMs).toBeLessThan(AT_ONCE_MS + 1000);
      const missing = await missingOf(clone);
      for (const { offset, length } of missing) {
        for (const at of [offset, offset + length - 512]) {
          await expect(client.read(at, new Uint8Array(512)), String(at)).rejects.toMatchObject({ code: "io" });
        }
      }
      for (const { offset, length } of othersThan(missing, SIZE)) await expectContents(client, offset, length);
      await expectIndependent(client, 14 * MiB);
      await expect(client.write(8 * MiB + 100, new Uint8Array(100))).rejects.toMatchObject({ code: "io" });
      await using _ = await begin(folder);
      await untilDisk(clone, (disk) => disk.source?.state === "connected");
      await expectContents(client, 8 * MiB, 8192);
      await clone.call("set-speed", { bytesPerSecond: null });
      await clone.hydrated();
      await client.close();
      expect(await clone.stop()).toBe(0);
      expect(rangesDifference(place.image, [{ offset: 0, length: SIZE }], contents)).toBeUndefined();
    },
  );
});

/** A slow clone, whose source is at the other end of a line that obeys. */
async function overLine() {
  await using stack = new AsyncDisposableStack();
  const folder = stack.use(tempDir());
  makeDisk(folder);
  const source = stack.use(await nbdkit("-r", "file", folder.file("disk")));
  const line = stack.use(await startLine({ target: source.address }));
  const place = placeIn(folder, `nbd://${formatAddress(line.address)}`);
  const clone = stack.use(await startClone({ ...place, flags: ["--rate=64K"] }));
  const rest = stack.move();
  return { line, clone, image: place.image, [Symbol.asyncDispose]: () => rest.disposeAsync() };
}

describe("a black hole between the source and us", () => {
  itWith(["nbdkit"], "delays nobody who does not need what is behind it", async () => {
    await using rig = await overLine();
    const { line, clone } = rig;
    await using client = await clone.open();
    await expectContents(client, 0, 512);
    await line.stall();
    // The background waits as well, for as much as it may ask for.
    await clone.call("set-speed", { bytesPerSecond: null });
    let waiting = true;
    const demand = expectContents(client, 8 * MiB, 4096).finally(() => {
      waiting = false;
    });
    for (let n = 0; n < counts({ local: 10, ci: 64 }); n++) await expectIndependent(client, 12 * MiB + n * 16_384);
    expect(waiting).toBe(true);
    await line.resume();
    await demand;
  });

  for (const end of ["ends", "breaks the link"]) {
    itWith(
      ["nbdkit"],
      `holds up no covering write of a block that is being fetched, and none is undone when it ${end}`,
      async () => {
        await using rig = await overLine();
        const { line, clone, image } = rig;
        await using client = await clone.open();
        await expectContents(client, 0, 512);
        await line.stall();
        const at = 8 * MiB;
        const newer = pattern(at, 8192, 62);
        // Asked for on the demand session, and never answered while the line is stalled.
        let done = false;
        const read = bytesOf(client, at, 16_384).finally(() => {
          done = true;
        });
        await letPass(clone, 0.2);
        await atOnce("a covering write", client.write(at, newer));
        await atOnce("a flush", client.flush());
        expect(await bytesOf(client, at, 8192)).toEqual(newer);
        expect(done).toBe(false);
        if (end === "breaks the link") await line.cutNow();
        await line.resume();
        const bytes = await read;
        expect(bytes.subarray(8192).equals(contents(at + 8192, 8192))).toBe(true);
        await clone.call("set-speed", { bytesPerSecond: null });
        await clone.hydrated();
        expect((await bytesOf(client, at, 8192)).equals(newer)).toBe(true);
        await expectContents(client, at + 8192, MiB);
        await client.close();
        expect(await clone.stop()).toBe(0);
        expect(rangesDifference(image, [{ offset: at, length: 8192 }], (o, n) => pattern(o, n, 62))).toBeUndefined();
      },
    );
  }

  itWith(
    ["nbdkit"],
    "is noticed within 15 seconds, and what it swallowed is asked again",
    async (context) => {
      requireAsked(context, "BLOCKFERRY_SLOW", "takes the 15 seconds that it promises");
      await using rig = await overLine();
      const { line, clone } = rig;
      await using client = await clone.open();
      await line.lose("down");
      const startMs = performance.now();
      const read = expectContents(client, 8 * MiB, 4096);
      await letPass(clone, 0.5);
      // New connections pass; the old ones say nothing for ever.
      await line.resume();
      await read;
      const tookMs = performance.now() - startMs;
      expect(tookMs).toBeGreaterThan(1000);
      expect(tookMs).toBeLessThan(NOTICED_MS + AT_ONCE_MS);
      expect((await diskOf(clone)).source?.reconnects).toBeGreaterThanOrEqual(1);
      await clone.call("set-speed", { bytesPerSecond: null });
      await clone.hydrated();
    },
    60_000,
  );
});
