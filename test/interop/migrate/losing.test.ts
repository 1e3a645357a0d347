/** The source dies: what is missing waits, or fails, as was asked for; what is here goes on; and it comes back. */
import { expect, test } from "vitest";
import { imageDifference, pattern, type Region } from "../../support/patterns.ts";
import { tempDir } from "../../support/temp-dir.ts";
import { MiB } from "../serve/layout.ts";
import { linkOf, Rig } from "./rig.ts";

const SIZE = 8 * MiB;
const REGIONS: readonly Region[] = [{ offset: 0, length: SIZE, salt: 4 }];
const BLOCK = 4096;

test("a source that was killed under its destination is started again, and the rest comes", async () => {
  using folder = tempDir();
  const rig = new Rig(folder);
  rig.makeDisks(SIZE, REGIONS);
  const source = await rig.source();
  const link = await linkOf(source);
  await using dest = await rig.dest(link, { flags: ["--mode", "postcopy", "--rate", "64K"] });
  await dest.switchover();
  await using guest = await dest.open({ exportName: "vda" });
  await guest.write(0, pattern(0, BLOCK, 8));
  await source.kill();
  await expect.poll(async () => (await dest.status()).migration?.shown).toBe("disconnected");
  expect((await dest.status()).next).toContain("blockferry missing");
  await guest.write(BLOCK, pattern(BLOCK, BLOCK, 8), { fua: true });
  const found = Buffer.alloc(BLOCK);
  const waiting = guest.read(SIZE - BLOCK, found);

  await using again = await rig.source({ link });
  await waiting;
  expect(found.equals(pattern(SIZE - BLOCK, BLOCK, 4))).toBe(true);
  // It has learnt again whose the disk is, and that it must not come back.
  expect(await again.phase).toBe("serving");
  await expect(again.call("cancel", { reason: "a test" })).rejects.toMatchObject({ code: "written" });
  await dest.call("set-speed", { bytesPerSecond: null });
  await dest.reached("complete");
  expect(await dest.stop()).toBe(0);
  const left = [...REGIONS, { offset: 0, length: 2 * BLOCK, salt: 8 }];
  expect(imageDifference(rig.image("b"), SIZE, left)).toBeUndefined();
});

test("with --on-source-loss=eio reads of what is missing fail, and nothing else does", async () => {
  using folder = tempDir();
  const rig = new Rig(folder);
  rig.makeDisks(SIZE, REGIONS);
  const source = await rig.source();
  const flags = ["--mode", "postcopy", "--rate", "64K", "--on-source-loss", "eio", "--source-loss-deadline", "100ms"];
  await using dest = await rig.dest(await linkOf(source), { flags });
  await using guest = await dest.open({ exportName: "vda" });
  await expect(guest.write(0, Buffer.alloc(BLOCK, 1))).rejects.toMatchObject({ code: "permission" });
  const early = Buffer.alloc(BLOCK);
  await guest.read(0, early);
  expect(early.equals(pattern(0, BLOCK, 4))).toBe(true);
  await dest.switchover();
  await source.kill();
  await expect(guest.read(SIZE - BLOCK, Buffer.alloc(BLOCK))).rejects.toMatchObject({ code: "io" });
  await guest.write(SIZE - BLOCK, pattern(SIZE - BLOCK, BLOCK, 9));
  await guest.read(SIZE - BLOCK, early);
  expect(early.equals(pattern(SIZE - BLOCK, BLOCK, 9))).toBe(true);
  const { runs } = await dest.call("missing", {});
  expect(runs.at(-1)).toEqual([expect.any(Number), expect.any(Number)]);
  expect(runs.every(([offset, length]) => offset + length <= SIZE - BLOCK)).toBe(true);
});
