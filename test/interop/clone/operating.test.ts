/** A clone as its operator sees it: presence, progress, the verbs, and finding it without being told where it is. */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdirSync } from "node:fs";
import { text } from "node:stream/consumers";
import { describe, expect, test } from "vitest";
import {
  bytesOf,
  diskOf,
  letPass,
  missingOf,
  placeIn,
  presenceMap,
  rangesDifference,
  totalOf,
  untilDisk,
} from "../../support/clone-checks.ts";
import { blockferry, type CloneProcess, startClone } from "../../support/clone-process.ts";
import { makeImage, pattern } from "../../support/patterns.ts";
import { nbdkit, type Peer } from "../../support/peers.ts";
import { run, runOk } from "../../support/run.ts";
import { counts } from "../../support/seed.ts";
import { BLOCKFERRY } from "../../support/serve-process.ts";
import { type TempDir, tempDir } from "../../support/temp-dir.ts";
import { itWith } from "../../support/tools.ts";
import { KiB, MiB } from "../serve/layout.ts";

const SIZE = 32 * MiB;
const SALT = 31;

async function fullSource(folder: TempDir, sizeBytes = SIZE): Promise<Peer> {
  makeImage(folder.file("disk"), sizeBytes, [{ offset: 0, length: sizeBytes, salt: SALT }]);
  return await nbdkit("-r", "file", folder.file("disk"));
}

/** A clone of a full disk whose background is held. */
async function pausedClone(folder: TempDir, source: Peer): Promise<CloneProcess> {
  const clone = await startClone({ ...placeIn(folder, source), flags: ["--rate=64K"] });
  await clone.call("pause", {});
  return clone;
}

itWith(["nbdkit", "nbdinfo"], "presence is told alike by nbdinfo, map, missing and status, and is true", async () => {
  using folder = tempDir();
  await using source = await fullSource(folder);
  await using clone = await pausedClone(folder, source);
  {
    await using client = await clone.open();
    await client.write(20 * MiB, pattern(20 * MiB, 12 * KiB, SALT));
    await client.writeZeroes(24 * MiB, MiB);
    await bytesOf(client, 10 * MiB, 512);
  }
  const known = await untilDisk(clone, ({ localBytes }) => localBytes > MiB + 12 * KiB);
  const missing = await missingOf(clone);
  expect(totalOf(missing)).toBe(known.missingBytes);
  expect(known.localBytes + known.missingBytes).toBe(SIZE);
  const map = JSON.parse(await clone.ask("map", "--json")) as { offset: number; length: number; type: number }[];
  expect(map.filter(({ type }) => type === 1).map(({ offset, length }) => ({ offset, length }))).toEqual(missing);
  expect((await presenceMap(clone.uri)).map(({ offset, length, type }) => ({ offset, length, type }))).toEqual(
    map.map(({ offset, length, type }) => ({ offset, length, type })),
  );
  const at = (offset: number): number | undefined =>
    map.find((run) => run.offset <= offset && offset < run.offset + run.length)?.type;
  expect([at(10 * MiB), at(20 * MiB), at(24 * MiB), at(24 * MiB + MiB - 1), at(25 * MiB)]).toEqual([0, 0, 0, 0, 1]);
  const local = map.filter(({ type, offset }) => type === 0 && offset !== 24 * MiB);
  const expected = (offset: number, length: number): Buffer => pattern(offset, length, SALT);
  expect(rangesDifference(folder.file("copy.raw"), local, expected)).toBeUndefined();

  await clone.call("set-speed", { bytesPerSecond: null });
  await clone.call("resume", {});
  await clone.hydrated();
  expect((await presenceMap(clone.uri)).every(({ type }) => type === 0)).toBe(true);
  expect(await missingOf(clone)).toEqual([]);
});

itWith(["nbdkit"], "pause holds the background but not the guest, and resume goes on", async () => {
  using folder = tempDir();
  await using source = await fullSource(folder);
  await using clone = await pausedClone(folder, source);
  // What was under way when it was paused still comes.
  const before = await untilSettled(clone);
  expect((await diskOf(clone)).hydration?.state).toBe("paused");
  await using client = await clone.open();
  expect((await bytesOf(client, 16 * MiB, 4096)).equals(pattern(16 * MiB, 4096, SALT))).toBe(true);
  expect((await bytesOf(client, 30 * MiB, 4096)).equals(pattern(30 * MiB, 4096, SALT))).toBe(true);
  const fetchedBytes = (await diskOf(clone)).hydration?.fetchedBytes;
  expect(fetchedBytes).toBe(before);
  expect((await clone.tryAsk("wait", "--for=hydrated", "--timeout=100ms")).status).toBe(2);
  await clone.ask("set-speed", "unlimited");
  await clone.ask("resume");
  expect(await clone.ask("wait", "--for=hydrated", "--timeout=100s")).toBe("");
  expect(await clone.ask("wait", "--for=complete")).toBe("");
  expect(JSON.parse(await clone.ask("status", "--json"))).toMatchObject({
    state: "complete",
    next: "the image stands alone: the source may go",
    disks: [{ missingBytes: 0, state: "concluded", hydration: { state: "hydrated" }, source: { state: "released" } }],
  });
});

/** Fetched bytes, once they stay as they are. */
async function untilSettled(clone: CloneProcess): Promise<number> {
  for (let last = -1; ; ) {
    const now = (await diskOf(clone)).hydration?.fetchedBytes ?? 0;
    if (now === last) return now;
    last = now;
    await letPass(clone, 0.3);
  }
}

itWith(["nbdkit"], "set-speed holds over some seconds, at once and in both directions", async () => {
  using folder = tempDir();
  await using source = await fullSource(folder, 64 * MiB);
  await using clone = await startClone({ ...placeIn(folder, source), flags: ["--rate=1M"] });
  const seconds = counts({ local: 2, ci: 5 });
  for (const rate of [2 * MiB, 6 * MiB]) {
    await clone.call("set-speed", { bytesPerSecond: rate });
    const begin = await diskOf(clone);
    expect(begin.hydration?.rateLimitBytesPerSecond).toBe(rate);
    const startMs = performance.now();
    await letPass(clone, seconds);
    const bytes = (await diskOf(clone)).localBytes - begin.localBytes;
    const perSecond = (bytes * 1000) / (performance.now() - startMs);
    // The promise is the upper bound: a disk that stands still for a while is not made up for.
    expect(perSecond / rate).toBeGreaterThan(counts({ local: 0.75, ci: 0.45 }));
    expect(perSecond / rate).toBeLessThan(1.25);
  }
});

describe("progress", () => {
  /** What a clone with `--progress=FORM` writes until it is hydrated: standard error, and descriptor 3. */
  async function progressOf(form: string): Promise<{ stderr: string; three: string }> {
    using folder = tempDir();
    await using source = await fullSource(folder, 12 * MiB);
    const { source: uri, image, socket } = placeIn(folder, source);
    const args = [
      "clone",
      "--exit-when-hydrated",
      "--rate=4M",
      `--progress=${form}`,
      "-U",
      socket,
      "-C",
      `${socket}.ctl`,
    ];
    const child = spawn(BLOCKFERRY, [...args, uri, image], { stdio: ["ignore", "ignore", "pipe", "pipe"] });
    const [, stderr, three] = await Promise.all([
      new Promise((resolve) => child.once("close", resolve)),
      text(child.stderr as NodeJS.ReadableStream),
      text(child.stdio[3] as NodeJS.ReadableStream),
    ]);
    expect(child.exitCode).toBe(0);
    return { stderr, three };
  }

  itWith(["nbdkit"], "json: an object a line, and the last one says that all is here", async () => {
    const lines = (await progressOf("json")).stderr.trim().split("\n");
    const objects = lines.map((line) => JSON.parse(line) as { localBytes: number; state: string });
    expect(objects.length).toBeGreaterThanOrEqual(2);
    expect(objects.map(({ localBytes }) => localBytes)).toEqual(
      objects.map(({ localBytes }) => localBytes).sort((a, b) => a - b),
    );
    expect(objects[0]).toMatchObject({ sizeBytes: 12 * MiB, state: "hydrating", stalledReason: null });
    expect(objects.at(-1)).toMatchObject({ localBytes: 12 * MiB, percent: 100, state: "hydrated", etaSeconds: null });
  });

  itWith(["nbdkit"], "plain: a line a second; a descriptor: hundredths; none: silence", async () => {
    const [plain, descriptor, none] = await Promise.all([progressOf("plain"), progressOf("3"), progressOf("none")]);
    const lines = plain.stderr.trim().split("\n");
    expect(lines[0]).toMatch(/^[\d.]+ MiB \/ 12\.0 MiB {2}[\d.]+% {2}[\d.]+ [KM]iB\/s {2}ETA 0:00:0\d$/);
    expect(lines.at(-1)).toBe("12.0 MiB / 12.0 MiB  100.0%  hydrated");
    expect(descriptor.three).toMatch(/^(\d+\/100\n)+$/);
    expect(descriptor.three.endsWith("\n100/100\n")).toBe(true);
    expect(descriptor.stderr + none.stderr + none.three).toBe("");
  });
});

itWith(["nbdkit"], "events tells of the source, of hydration and of its end, in order", async () => {
  using folder = tempDir();
  await using source = await fullSource(folder, 4 * MiB);
  await using clone = await startClone({ ...placeIn(folder, source), flags: ["--rate=64K"] });
  const following = spawn(BLOCKFERRY, ["events", "-f", "--json", "-C", clone.control], {
    stdio: ["ignore", "pipe", "inherit"],
  });
  let told = "";
  following.stdout.on("data", (bytes) => (told += String(bytes)));
  const ended = once(following, "close");
  await once(following.stdout, "data");
  await clone.ask("pause");
  await clone.call("resume", {});
  await clone.call("set-speed", { bytesPerSecond: null });
  await clone.hydrated();
  expect(await clone.stop()).toBe(0);
  expect(await ended).toEqual([0, null]);
  const lines = told.trim().split("\n");
  const events = lines.map((line) => (JSON.parse(line) as { event: string }).event);
  const wanted = ["hydration-paused", "speed", "hydration-complete", "stopping"];
  expect(events.filter((event) => wanted.includes(event))).toEqual(wanted);
  expect(events).toContain("source-connected");
});

itWith(["nbdkit"], "without -C the only clone is found, and two are told apart", async () => {
  using folder = tempDir();
  const runtime = folder.file("run");
  mkdirSync(runtime, { mode: 0o700 });
  const env = { BLOCKFERRY_RUNTIME_DIR: runtime };
  await using source = await nbdkit("pattern", "1M");
  const place = placeIn(folder, source);
  const begin = (n: number): ReturnType<typeof spawn> => {
    const args = ["clone", "--exit-with-parent", "--progress=none", "--rate=64K", "-x", `disk${n}`];
    const own = ["-U", `${place.socket}${n}`, place.source, `${place.image}${n}`];
    return spawn(BLOCKFERRY, [...args, ...own], {
      env: { ...process.env, ...env },
      stdio: ["ignore", "ignore", "inherit"],
    });
  };
  const ended = (child: ReturnType<typeof spawn>): Promise<unknown> =>
    new Promise((resolve) => child.once("close", resolve));
  const first = begin(1);
  const firstEnded = ended(first);
  await runOk([BLOCKFERRY, "wait", "--for=listening", "--timeout=20s"], { env });
  expect(await runOk([BLOCKFERRY, "status", "--raw"], { env })).toMatch(/^role=clone .* disk=disk1 /);
  const second = begin(2);
  const secondEnded = ended(second);
  await expect.poll(async () => (await run([BLOCKFERRY, "status"], { env })).status, { timeout: 20_000 }).toBe(64);
  const both = await run([BLOCKFERRY, "status"], { env });
  expect(both.stderr).toContain(`clone-disk1-${first.pid}.ctl`);
  expect(both.stderr).toContain(`clone-disk2-${second.pid}.ctl`);
  second.kill("SIGTERM");
  expect(await secondEnded).toBe(0);
  await runOk([BLOCKFERRY, "quit"], { env });
  expect(await firstEnded).toBe(0);
});

test("what makes no sense is refused before anything is touched", async () => {
  using folder = tempDir();
  const image = folder.file("copy.raw");
  const uri = `nbd+unix:///?socket=${folder.file("nbd")}`;
  const cases: readonly [readonly string[], RegExp][] = [
    [["--format=vmdk", uri, image], /no image format called/],
    [["--source-loss-deadline=5s", uri, image], /--source-loss-deadline/],
    [["--cluster-size=5000", uri, image], /power of two/],
    [["nbd://storage.example/vda", image], /without TLS/],
    [["http://storage.example/vda", image], /cannot use the source/],
    [[`${uri}&tls-verify-peer=0`, image], /cannot use the source/],
  ];
  for (const [args, why] of cases.slice(0, counts({ local: 2, ci: cases.length }))) {
    const outcome = await blockferry("clone", "-U", folder.file("s"), ...args);
    expect({ args, status: outcome.status }).toEqual({ args, status: 64 });
    expect(outcome.stderr).toMatch(why);
  }
});
