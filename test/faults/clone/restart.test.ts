/** A clone that is killed or stopped goes on where it was: little is fetched twice, and nothing needs the source to start. */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { readdirSync, readFileSync } from "node:fs";
import { createServer } from "node:net";
import { text } from "node:stream/consumers";
import { describe, expect, test } from "vitest";
import { bytesOf, diskOf, placeIn, rangesDifference, untilDisk } from "../../support/clone-checks.ts";
import { blockferry, runClone, startClone } from "../../support/clone-process.ts";
import { makeImage, pattern } from "../../support/patterns.ts";
import { nbdkitIn, type Peer } from "../../support/peers.ts";
import { run } from "../../support/run.ts";
import { counts } from "../../support/seed.ts";
import { BLOCKFERRY } from "../../support/serve-process.ts";
import { type TempDir, tempDir } from "../../support/temp-dir.ts";
import { itWith } from "../../support/tools.ts";

const MiB = 2 ** 20;
const RATE = 2 * MiB;
/** A second's worth, and as much again, or more, for a machine that is busy with other things: a commit may take long there. */
const REFETCHED_MAX = counts({ local: 2, ci: 4 }) * RATE;
const SIZE = counts({ local: 12, ci: 32 }) * MiB;
const SALT = 91;
/** The program's own promise, and what a busy machine adds. */
const DRAIN_MS_MAX = 5000;
const SLACK_MS = counts({ local: 3000, ci: 30_000 });

const contents = (offset: number, length: number): Buffer => pattern(offset, length, SALT);

function serveDisk(folder: TempDir, log: string): Promise<Peer> {
  makeImage(folder.file("disk"), SIZE, [{ offset: 0, length: SIZE, salt: SALT }]);
  return nbdkitIn(folder, "--filter=log", "-r", "file", folder.file("disk"), `logfile=${folder.file(log)}`);
}

function uriIn(folder: TempDir): string {
  return `nbd+unix:///?socket=${folder.file("nbd")}`;
}

/** The 4 KiB blocks that were read, but for those that the source is known by: these are asked for one by one. */
function blocksRead(folder: TempDir, log: string): Set<number> {
  const blocks = new Set<number>();
  const reads = readFileSync(folder.file(log), "latin1").matchAll(
    / Read id=\d+ offset=0x([0-9a-f]+) count=0x([0-9a-f]+)/g,
  );
  for (const [, offset = "", count = ""] of reads) {
    const [first, length] = [parseInt(offset, 16) / 4096, parseInt(count, 16) / 4096];
    for (let block = 0; length > 1 && block < length; block++) blocks.add(first + block);
  }
  return blocks;
}

itWith(["nbdkit"], "after SIGKILL, what one second brings is fetched again at the most", async () => {
  using folder = tempDir();
  const place = placeIn(folder, uriIn(folder));
  let localBefore = 0;
  {
    await using _ = await serveDisk(folder, "log1");
    await using clone = await startClone({ ...place, flags: [`--rate=${RATE}`] });
    localBefore = (await untilDisk(clone, ({ localBytes }) => localBytes >= SIZE / 2)).localBytes;
    await clone.kill();
  }
  await using _ = await serveDisk(folder, "log2");
  await using clone = await startClone({ ...place, flags: ["--rate=64K"] });
  expect((await diskOf(clone)).localBytes).toBeGreaterThanOrEqual(localBefore - REFETCHED_MAX);
  await clone.call("set-speed", { bytesPerSecond: null });
  await clone.hydrated();
  expect(await clone.stop()).toBe(0);
  expect(rangesDifference(place.image, [{ offset: 0, length: SIZE }], contents)).toBeUndefined();
  const first = blocksRead(folder, "log1");
  const second = blocksRead(folder, "log2");
  const again = [...second].filter((block) => first.has(block)).length * 4096;
  console.log(`fetched again: ${again} bytes, at ${RATE} bytes a second`);
  expect(first.size * 4096).toBeGreaterThanOrEqual(localBefore * 0.9);
  expect(again).toBeLessThanOrEqual(REFETCHED_MAX);
});

itWith(["nbdkit"], "a clone that was begun starts without its source, and serves what is here", async () => {
  using folder = tempDir();
  const place = placeIn(folder, uriIn(folder));
  const written = pattern(SIZE - MiB, 8192, 92);
  const flushed = pattern(0, 4096, 93);
  {
    await using _ = await serveDisk(folder, "log1");
    await using clone = await startClone({ ...place, flags: ["--rate=4M"] });
    await untilDisk(clone, ({ localBytes }) => localBytes >= MiB);
    await using client = await clone.open();
    await client.write(0, flushed);
    await client.flush();
    // Acknowledged, and never flushed.
    await client.write(SIZE - MiB, written);
    await clone.kill();
    client.drop("its server is gone");
  }
  await using clone = await startClone(place);
  await using client = await clone.open();
  expect((await bytesOf(client, SIZE - MiB, 8192)).equals(written)).toBe(true);
  expect((await bytesOf(client, 0, 4096)).equals(flushed)).toBe(true);
  await client.flush();
  expect((await clone.status()).next).toContain("bring the source back");
  await using _ = await serveDisk(folder, "log2");
  await clone.hydrated();
  expect((await bytesOf(client, SIZE - MiB, 8192)).equals(written)).toBe(true);
  const rest = [{ offset: 4096, length: SIZE - MiB - 4096 }];
  expect(rangesDifference(place.image, rest, contents)).toBeUndefined();
});

describe("told to stop", () => {
  itWith(
    ["nbdkit"],
    "by SIGTERM in mid-stream, it commits what is here: 0, or 75 with --exit-when-hydrated",
    async () => {
      using folder = tempDir();
      const place = placeIn(folder, uriIn(folder));
      await using _ = await serveDisk(folder, "log");
      let local = 0;
      for (const [flags, status] of [
        [["--rate=1M"], 0],
        [["--rate=1M", "--exit-when-hydrated"], 75],
      ] as const) {
        await using clone = await startClone({ ...place, flags });
        await using client = await clone.open();
        // All that was here when it was stopped is still here: nothing had to be flushed for that.
        expect((await diskOf(clone)).localBytes).toBeGreaterThanOrEqual(local);
        local = (await untilDisk(clone, ({ localBytes }) => localBytes > local + MiB / 2)).localBytes;
        const reads = Array.from({ length: 8 }, (_, n) => bytesOf(client, SIZE - (n + 1) * MiB, 4096));
        expect(await bytesOf(client, 0, 512)).toEqual(contents(0, 512));
        const startMs = performance.now();
        expect(await clone.stop(), clone.output).toBe(status);
        expect(performance.now() - startMs).toBeLessThan(DRAIN_MS_MAX + SLACK_MS);
        await Promise.allSettled(reads);
      }
      expect((await runClone({ ...place, flags: ["--exit-when-hydrated"] })).status).toBe(0);
      expect(rangesDifference(place.image, [{ offset: 0, length: SIZE }], contents)).toBeUndefined();
    },
  );

  itWith(
    ["nbdkit"],
    "while reads wait for a source that is away, it waits for them for 5 seconds; a second SIGINT for nobody",
    async () => {
      using folder = tempDir();
      const place = placeIn(folder, uriIn(folder));
      const source = await serveDisk(folder, "log");
      for (const signals of [["SIGINT", "SIGINT"], ["SIGTERM"]] as const) {
        await using clone = await startClone({ ...place, flags: ["--rate=64K"] });
        const client = await clone.open();
        await client.write(MiB, contents(MiB, 4096));
        await source.kill();
        const stalled = bytesOf(client, 4 * MiB, 4096).then(
          () => "answered",
          () => "failed",
        );
        await untilDisk(clone, (disk) => disk.source?.state !== "connected");
        const startMs = performance.now();
        process.kill(clone.pid, signals[0]);
        if (signals.length > 1) {
          await expect.poll(async () => (await clone.status()).state).toBe("stopping");
          process.kill(clone.pid, "SIGINT");
        }
        expect(await clone.ended).toBe(signals.length > 1 ? 130 : 0);
        expect(performance.now() - startMs).toBeLessThan(DRAIN_MS_MAX + SLACK_MS);
        expect(await stalled).toBe("failed");
        client.drop("its server is gone");
      }
      await using _ = await serveDisk(folder, "log");
      expect((await runClone({ ...place, flags: ["--exit-when-hydrated"] })).status).toBe(0);
      expect(rangesDifference(place.image, [{ offset: 0, length: SIZE }], contents)).toBeUndefined();
    },
  );

  itWith(["nbdkit", "bash"], "by a reader of its output that has left, it ends in order", async () => {
    using folder = tempDir();
    await using _ = await serveDisk(folder, "log");
    const { image, socket, source } = placeIn(folder, uriIn(folder));
    const clone = `"$0" clone --rate=64K --progress=none -U "$1" -C "$1.ctl" "$2" "$3" | true; exit \${PIPESTATUS[0]}`;
    const outcome = await run(["bash", "-c", clone, BLOCKFERRY, socket, source, image]);
    // Without native calls, that is said.
    expect(outcome.status).toBe(0);
    expect(outcome.stderr.replace(/^.*without native calls, .*\n/, "")).toBe("");
    expect((await blockferry("image", "info", image)).status).toBe(75);
    // One whose progress nobody reads any more goes on.
    const args = ["clone", "--exit-when-hydrated", "--progress=json", "-U", socket, "-C", `${socket}.ctl`];
    const child = spawn(BLOCKFERRY, [...args, "--rate=8M", source, image], { stdio: ["ignore", "pipe", "pipe"] });
    child.stderr.destroy();
    expect(await text(child.stdout)).toContain("nbd+unix://");
    await new Promise((resolve) => (child.exitCode === null ? child.once("close", resolve) : resolve(0)));
    expect(child.exitCode).toBe(0);
    expect(rangesDifference(image, [{ offset: 0, length: SIZE }], contents)).toBeUndefined();
  });

  test("while the source has not said a word, it ends at once and leaves nothing behind", async () => {
    using folder = tempDir();
    const place = placeIn(folder, uriIn(folder));
    const asked = Promise.withResolvers<void>();
    const silent = createServer(() => asked.resolve()).listen(folder.file("nbd"));
    const own = ["-U", place.socket, "-C", `${place.socket}.ctl`, "--progress=none", "--exit-when-hydrated"];
    const child = spawn(BLOCKFERRY, ["clone", ...own, place.source, place.image], { stdio: "inherit" });
    const ended = once(child, "close");
    await asked.promise;
    const startMs = performance.now();
    child.kill("SIGTERM");
    expect(await ended).toEqual([75, null]);
    expect(performance.now() - startMs).toBeLessThan(DRAIN_MS_MAX + SLACK_MS);
    expect(readdirSync(folder.path)).toEqual(["nbd"]);
    silent.close();
  });
});
