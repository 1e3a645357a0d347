/** The file system of the copy is full: guests' writes are told so, hydration waits for room, and nothing is lost. */
import { mkdirSync } from "node:fs";
import { expect } from "vitest";
import {
  bytesOf,
  missingOf,
  othersThan,
  placeIn,
  rangesDifference,
  totalOf,
  untilDisk,
} from "../../support/clone-checks.ts";
import { startClone } from "../../support/clone-process.ts";
import { makeImage, pattern } from "../../support/patterns.ts";
import { nbdkit } from "../../support/peers.ts";
import { run, runOk } from "../../support/run.ts";
import { tempDir } from "../../support/temp-dir.ts";
import { itWith, requireRoot } from "../../support/tools.ts";

const MiB = 2 ** 20;
const SIZE = 24 * MiB;
const SALT = 51;

const contents = (offset: number, length: number): Buffer => pattern(offset, length, SALT);

itWith(
  ["nbdkit", "mount"],
  "a full disk: writes get ENOSPC, hydration waits and goes on by itself, nothing is lost",
  async (context) => {
    requireRoot(context, "mounting");
    using folder = tempDir();
    makeImage(folder.file("disk"), SIZE, [{ offset: 0, length: SIZE, salt: SALT }]);
    await using source = await nbdkit("-r", "file", folder.file("disk"));
    const small = folder.file("small");
    mkdirSync(small);
    await runOk(["mount", "-t", "tmpfs", "-o", "size=8M", "tmpfs", small]);
    await using cleanup = new AsyncDisposableStack();
    cleanup.defer(async () => void (await run(["umount", "-l", small])));
    const place = { ...placeIn(folder, source), image: `${small}/copy.raw` };
    await using clone = await startClone({ ...place, flags: ["--rate=4M"] });
    await using client = await clone.open();
    const early = pattern(20 * MiB, 64 * 1024, 52);
    await client.write(20 * MiB, early);
    await client.flush();
    const full = await untilDisk(clone, ({ hydration }) => hydration?.state === "stalled");
    expect(full.hydration?.stalledReason).toBe("the local disk is full");
    expect((await clone.status()).next).toContain("make room");

    // Local blocks are read and written; whatever needs room is told that there is none; missing blocks are read.
    await expect(client.write(22 * MiB, pattern(0, MiB))).rejects.toMatchObject({ code: "no-space" });
    await client.write(20 * MiB, early);
    expect((await bytesOf(client, 23 * MiB, 8192)).equals(contents(23 * MiB, 8192))).toBe(true);
    expect((await bytesOf(client, 0, 8192)).equals(contents(0, 8192))).toBe(true);
    const missing = await missingOf(clone);
    expect(totalOf(missing)).toBe((await clone.status()).disks[0]?.missingBytes);
    const local = othersThan(missing, SIZE).filter(({ offset }) => offset < 19 * MiB);
    expect(totalOf(local)).toBeGreaterThan(4 * MiB);
    expect(rangesDifference(place.image, local, contents)).toBeUndefined();

    await runOk(["mount", "-o", "remount,size=64M", small]);
    await clone.call("set-speed", { bytesPerSecond: null });
    await clone.hydrated(60_000);
    await client.write(22 * MiB, pattern(22 * MiB, MiB, 53));
    await client.flush();
    await client.close();
    expect(await clone.stop(), clone.output).toBe(0);
    const others = [
      { offset: 0, length: 20 * MiB },
      { offset: 20 * MiB + early.length, length: 2 * MiB - early.length },
      { offset: 23 * MiB, length: MiB },
    ];
    expect(rangesDifference(place.image, others, contents)).toBeUndefined();
    const own = [{ offset: 20 * MiB, length: early.length }];
    expect(rangesDifference(place.image, own, (at, length) => pattern(at, length, 52))).toBeUndefined();
    const later = [{ offset: 22 * MiB, length: MiB }];
    expect(rangesDifference(place.image, later, (at, length) => pattern(at, length, 53))).toBeUndefined();
  },
);
