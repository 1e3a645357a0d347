/** Read-only devices, hints, flushing, what survives a power cut, and closing. */
import assert from "node:assert/strict";
import type { BlockDevice } from "../device.ts";
import {
  assertDeclined,
  assertHolds,
  assertRefused,
  type ConformanceRule,
  type ConformanceTarget,
  makeFull,
  pattern,
  readBytes,
  zeroes,
} from "./rule.ts";

/** More turns of the microtask queue than a finished promise needs to be noticed, and none of the event loop. */
const NOTICE_TURNS = 50;

type Operation = (device: BlockDevice) => Promise<unknown>;

const OPERATIONS: Readonly<Record<string, Operation>> = {
  read: (device) => device.read(0, new Uint8Array(512)),
  write: (device) => device.write(0, pattern(0, 512, 1)),
  writeZeroes: (device) => device.writeZeroes(0, 512),
  discard: (device) => device.discard(0, 512),
  cache: (device) => device.cache(0, 512),
  flush: (device) => device.flush(),
  extents: (device) => device.extents(0, 512, 1),
};

/** Runs `work` on a full device, cuts the power, and hands what is left to `check`. */
async function acrossPowerLoss(target: ConformanceTarget, work: Operation, check: Operation): Promise<void> {
  const device = await makeFull(target);
  await device.flush();
  await work(device);
  assert.ok(target.afterPowerLoss, "the rule was applied to a target that cannot lose power");
  await using left = await target.afterPowerLoss(device);
  await check(left);
}

export const lifeRules: readonly ConformanceRule[] = [
  {
    title: "a read-only device refuses every change, is not changed, and can be read, mapped and flushed",
    needs: "readOnly",
    async run(target) {
      await using device = await makeFull(target, { readOnly: true });
      assert.equal(device.capabilities.readOnly, true);
      await assertRefused("write", () => device.write(0, pattern(0, 512, 1)), "read-only");
      await assertRefused("write with FUA", () => device.write(0, pattern(0, 512, 1), { fua: true }), "read-only");
      await assertRefused("zeroes", () => device.writeZeroes(0, 512), "read-only");
      await assertRefused("zeroes without a hole", () => device.writeZeroes(0, 512, { noHole: true }), "read-only");
      await assertRefused("discard", () => device.discard(0, 512), "read-only");
      assertDeclined("writeNow", () => device.writeNow(0, pattern(0, 512, 1)), "read-only");
      await device.cache(0, 512);
      await device.extents(0, device.sizeBytes, 4);
      await device.flush();
      await assertHolds(device, 0, pattern(0, device.sizeBytes));
    },
  },
  {
    title: "a writable device does not call itself read-only",
    async run(target) {
      await using device = await makeFull(target);
      assert.equal(device.capabilities.readOnly, false);
    },
  },
  {
    title: "cache and flush change nothing, and may be under way several at a time",
    async run(target) {
      await using device = await makeFull(target);
      const { sizeBytes } = device;
      await Promise.all([
        device.flush(),
        device.cache(0, sizeBytes),
        device.flush(),
        device.cache(1, 1),
        device.flush(),
      ]);
      await assertHolds(device, 0, pattern(0, sizeBytes));
    },
  },
  {
    title: "a flush makes durable every write, zero and discard that had resolved before it",
    needs: "afterPowerLoss",
    run: (target) =>
      acrossPowerLoss(
        target,
        async (device) => {
          await device.write(5, pattern(5, 1000, 1));
          if (device.writeNow(3000, pattern(3000, 70_000, 2)) === -1)
            await device.write(3000, pattern(3000, 70_000, 2));
          await device.writeZeroes(80_000, 30_000);
          await device.writeZeroes(120_000, 10_000, { noHole: true });
          await device.flush();
        },
        async (left) => {
          await assertHolds(left, 5, pattern(5, 1000, 1));
          await assertHolds(left, 3000, pattern(3000, 70_000, 2));
          await assertHolds(left, 80_000, zeroes(30_000));
          await assertHolds(left, 120_000, zeroes(10_000));
          await assertHolds(left, 140_000, pattern(140_000, left.sizeBytes - 140_000));
        },
      ),
  },
  {
    title: "a flush covers what had resolved before it even when another flush was already under way",
    needs: "afterPowerLoss",
    run: (target) =>
      acrossPowerLoss(
        target,
        async (device) => {
          const first = device.flush();
          await device.write(5, pattern(5, 1000, 1));
          await device.flush();
          await first;
        },
        (left) => assertHolds(left, 5, pattern(5, 1000, 1)),
      ),
  },
  {
    title: "a write with FUA is durable when it resolves",
    needs: "afterPowerLoss",
    run: (target) =>
      acrossPowerLoss(
        target,
        (device) => device.write(4000, pattern(4000, 70_000, 1), { fua: true }),
        (left) => assertHolds(left, 4000, pattern(4000, 70_000, 1)),
      ),
  },
  {
    title: "zeroes with FUA are durable when they resolve",
    needs: "afterPowerLoss",
    run: (target) =>
      acrossPowerLoss(
        target,
        async (device) => {
          await device.writeZeroes(4000, 70_000, { fua: true });
          await device.writeZeroes(100_000, 5000, { fua: true, noHole: true });
        },
        async (left) => {
          await assertHolds(left, 4000, zeroes(70_000));
          await assertHolds(left, 100_000, zeroes(5000));
        },
      ),
  },
  {
    title: "a flush that failed is not made good by a later one",
    needs: "failNextSync",
    async run(target) {
      await using device = await makeFull(target);
      await device.flush();
      await device.write(0, pattern(0, 512, 1));
      assert.ok(target.failNextSync, "the rule was applied to a target whose syncs cannot fail");
      target.failNextSync(device);
      await assertRefused("the flush", () => device.flush(), "io");
      await assertRefused("the next flush", () => device.flush(), "io");
      await assertRefused("a write with FUA", () => device.write(512, pattern(512, 512, 1), { fua: true }), "io");
      await assertRefused("the flush after that", () => device.flush(), "io");
    },
  },
  {
    title: "closing waits for what is under way, which still succeeds",
    async run(target) {
      const device = await makeFull(target);
      let settled = 0;
      const names = Object.keys(OPERATIONS);
      const work = Object.values(OPERATIONS).map((operation) => operation(device).finally(() => settled++));
      await device.close();
      for (let turn = 0; turn < NOTICE_TURNS; turn++) await Promise.resolve();
      const atClose = settled;
      const outcomes = await Promise.allSettled(work);
      assert.equal(atClose, names.length, "closed while operations were under way");
      for (const [index, outcome] of outcomes.entries()) assert.equal(outcome.status, "fulfilled", names[index]);
    },
  },
  {
    title: "closing again, or twice at a time, does nothing more",
    async run(target) {
      const device = await makeFull(target);
      await Promise.all([device.close(), device.close()]);
      await device.close();
      await device[Symbol.asyncDispose]();
      const other = await makeFull(target);
      await other[Symbol.asyncDispose]();
      await other.close();
    },
  },
  {
    title: "after closing, every call fails as shutting down",
    async run(target) {
      for (const close of ["close", Symbol.asyncDispose] as const) {
        const device = await makeFull(target);
        await device[close]();
        for (const [name, operation] of Object.entries(OPERATIONS)) {
          await assertRefused(name, () => operation(device), "shutting-down");
        }
        assert.equal(device.readNow(0, new Uint8Array(512)), -1, "readNow");
        assertDeclined("writeNow", () => device.writeNow(0, pattern(0, 512, 1)), "shutting-down");
      }
    },
  },
  {
    title: "two devices know nothing of each other",
    async run(target) {
      await using one = await makeFull(target);
      await using other = await makeFull(target);
      await one.write(0, pattern(0, 4096, 1));
      await assertHolds(other, 0, pattern(0, 4096));
      await other.close();
      assert.deepEqual(await readBytes(one, 0, 4096), pattern(0, 4096, 1));
    },
  },
];
