import { closeSync, openSync } from "node:fs";
import { setImmediate } from "node:timers";
import { expect, onTestFinished, test } from "vitest";
import { DataSync } from "../../../src/os/file-sync.ts";
import { DirtyBudget, FileWriteback, type WritebackCalls } from "../../../src/os/file-writeback.ts";
import { tempDir } from "../../support/temp-dir.ts";

const MIB = 2 ** 20;
const PLENTY = 2 ** 40;

/** A disk that finishes a write-back when it is told to. */
class SlowDisk implements WritebackCalls {
  readonly #held: (() => void)[] = [];
  started = 0;

  finishWriteback(): Promise<number> {
    this.started += 1;
    return new Promise((resolve) => this.#held.push(() => resolve(0)));
  }

  finishOne(): void {
    this.#held.shift()?.();
  }
}

function opened(calls: WritebackCalls | undefined, budget = new DirtyBudget(PLENTY)): FileWriteback {
  const folder = tempDir();
  const fd = openSync(folder.file("image"), "w");
  onTestFinished(() => {
    closeSync(fd);
    folder[Symbol.dispose]();
  });
  return new FileWriteback(fd, { calls, budget });
}

/** Until no work of the event loop is left that `seen` could wait for. */
async function eventually(seen: () => boolean): Promise<void> {
  for (let turn = 0; turn < 10_000 && !seen(); turn++) await new Promise((resolve) => setImmediate(resolve));
  expect(seen()).toBe(true);
}

test("writes are admitted until too much is dirty, and again when it was written back", async () => {
  const disk = new SlowDisk();
  const budget = new DirtyBudget(PLENTY);
  const file = opened(disk, budget);
  let writtenMiB = 0;
  while (file.admits(MIB, 0)) {
    file.wrote(writtenMiB * MIB, MIB);
    writtenMiB += 1;
  }
  expect(writtenMiB).toBe(budget.limitBytes / MIB);
  expect(writtenMiB).toBeGreaterThanOrEqual(32);
  expect(writtenMiB).toBeLessThanOrEqual(512);
  await eventually(() => disk.started === 1);
  disk.finishOne();
  await eventually(() => file.admits(MIB, 0));
  await eventually(() => disk.started === 1 && budget.dirtyBytes < budget.limitBytes);
  await file.close();
  expect(budget.dirtyBytes).toBe(0);
});

test("write-back starts early, one at a time over all files", async () => {
  const disk = new SlowDisk();
  const budget = new DirtyBudget(PLENTY);
  const files = [opened(disk, budget), opened(disk, budget)] as const;
  const step = budget.limitBytes / 4;
  files[0].wrote(0, step - 1);
  expect(disk.started).toBe(0);
  for (const file of files) file.wrote(step, step);
  await eventually(() => disk.started === 1);
  files[0].wrote(2 * step, step);
  expect(disk.started).toBe(1);
  disk.finishOne();
  await eventually(() => disk.started === 2);
  disk.finishOne();
  for (const file of files) await file.close();
});

test("a slow disk lowers what may be dirty, not below what keeps it busy, and a fast one raises it again", () => {
  const budget = new DirtyBudget(PLENTY);
  const { limitBytes } = budget;
  budget.measured(16 * MIB, 400);
  expect(budget.limitBytes).toBe(80 * MIB);
  budget.measured(16 * MIB, 60_000);
  expect(budget.limitBytes).toBe(32 * MIB);
  budget.measured(16 * MIB, 1);
  expect(budget.limitBytes).toBe(limitBytes);
  expect(new DirtyBudget(0).limitBytes).toBe(32 * MIB);
});

test("after a write that was stopped, none is tried for twenty times as long", () => {
  const file = opened(undefined);
  file.timed(1_000, 1_001.9);
  expect(file.admits(4_096, 1_002)).toBe(true);
  file.timed(2_000, 2_010);
  expect(file.admits(4_096, 2_010)).toBe(false);
  expect(file.admits(4_096, 2_209)).toBe(false);
  expect(file.admits(4_096, 2_211)).toBe(true);
});

test("beside a sync of much, nothing is written on the loop's thread; beside one of little, it is", () => {
  const file = opened(undefined);
  file.wrote(0, MIB);
  const small = file.syncStarts();
  expect(file.admits(4_096, 0)).toBe(true);
  file.wrote(MIB, 80 * MIB);
  const large = file.syncStarts();
  expect(file.admits(4_096, 0)).toBe(false);
  small(true);
  expect(file.admits(4_096, 0)).toBe(false);
  large(true);
  expect(file.admits(4_096, 0)).toBe(true);
});

test("beside something that keeps the file's lock, nothing is written on the loop's thread", () => {
  const file = opened(undefined);
  file.obstacleStarts();
  file.obstacleStarts();
  file.obstacleEnded();
  expect(file.admits(4_096, 0)).toBe(false);
  file.obstacleEnded();
  expect(file.admits(4_096, 0)).toBe(true);
});

test("beside writes in the pool something is written as long as those get on", () => {
  const file = opened(undefined);
  file.poolWriteStarts(1_000);
  file.poolWriteStarts(1_001);
  expect(file.admits(4_096, 1_001)).toBe(true);
  expect(file.admits(4_096, 1_003)).toBe(false);
  file.poolWriteEnded(1_004);
  expect(file.admits(4_096, 1_005)).toBe(true);
  expect(file.admits(4_096, 1_007)).toBe(false);
  file.poolWriteEnded(1_008);
  expect(file.admits(4_096, 2_000)).toBe(true);
});

test("a sync settles what was written before it began; a failed one settles nothing", () => {
  const budget = new DirtyBudget(PLENTY);
  const file = opened(undefined, budget);
  file.wrote(0, 3 * MIB);
  const failing = file.syncStarts();
  file.wrote(3 * MIB, 2 * MIB);
  const ended = file.syncStarts();
  file.wrote(5 * MIB, MIB);
  failing(false);
  expect(budget.dirtyBytes).toBe(6 * MIB);
  ended(true);
  expect(budget.dirtyBytes).toBe(MIB);
});

test("what is written to the same place again and again is dirty once", async () => {
  const disk = new SlowDisk();
  const budget = new DirtyBudget(PLENTY);
  const file = opened(disk, budget);
  for (let written = 0; written < 2 * budget.limitBytes; written += MIB) file.wrote(written % (16 * MIB), MIB);
  expect(budget.dirtyBytes).toBe(16 * MIB);
  const ended = file.syncStarts();
  expect(file.admits(4_096, 0)).toBe(true);
  file.wrote(8 * MIB, MIB);
  file.wrote(8 * MIB, MIB);
  expect(budget.dirtyBytes).toBe(16 * MIB);
  ended(true);
  expect(budget.dirtyBytes).toBe(MIB);
  expect(disk.started).toBe(0);
  await file.close();
  expect(budget.dirtyBytes).toBe(0);
});

test("what was written while another sync ran stays dirty when only the first has ended", () => {
  const budget = new DirtyBudget(PLENTY);
  const file = opened(undefined, budget);
  file.wrote(0, 4 * MIB);
  const first = file.syncStarts();
  file.wrote(MIB, MIB);
  const second = file.syncStarts();
  first(true);
  expect(budget.dirtyBytes).toBe(MIB);
  second(false);
  file.wrote(MIB, MIB);
  expect(budget.dirtyBytes).toBe(2 * MIB);
  const third = file.syncStarts();
  third(true);
  expect(budget.dirtyBytes).toBe(0);
});

/** fdatasync that ends when it is told to. */
function heldSync() {
  const ends: ((error: Error | null) => void)[] = [];
  const writeback = { syncStarts: () => () => {} };
  const sync = new DataSync({ fd: 3, path: "image", writeback, sync: (_, done) => ends.push(done) });
  return { sync, ends };
}

async function settle(): Promise<void> {
  await new Promise((resolve) => setImmediate(resolve));
}

test("syncs that come while one runs share the next, which begins after they came", async () => {
  const { sync, ends } = heldSync();
  const order: string[] = [];
  void sync.run().then(() => order.push("first"));
  void sync.run().then(() => order.push("second"));
  void sync.run().then(() => order.push("third"));
  expect(ends).toHaveLength(1);
  ends[0]?.(null);
  await settle();
  expect(order).toEqual(["first"]);
  expect(ends).toHaveLength(2);
  ends[1]?.(null);
  await settle();
  expect(order).toEqual(["first", "second", "third"]);
  void sync.run();
  expect(ends).toHaveLength(3);
});

test("after one failed sync every later one fails alike, and the kernel is not asked again", async () => {
  const { sync, ends } = heldSync();
  const failed = sync.run();
  const waiting = sync.run();
  ends[0]?.(Object.assign(new Error("EIO"), { errno: -5, code: "EIO" }));
  const failure = { name: "FileError", code: "EIO", message: "cannot make image durable: i/o error (EIO)" };
  await expect(failed).rejects.toMatchObject(failure);
  await expect(waiting).rejects.toMatchObject(failure);
  await expect(sync.run()).rejects.toMatchObject(failure);
  expect(ends).toHaveLength(1);
});
