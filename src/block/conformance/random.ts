/** Random operations against a naive model: an array of bytes. */
import assert from "node:assert/strict";
import { isZero } from "../../util/zeroes.ts";
import type { BlockDevice } from "../device.ts";
import { BlockError } from "../error.ts";
import { assertBytes, assertHolds, type ConformanceRule, chooser, makeFull, pattern, readBytes } from "./rule.ts";

const STEPS = 400;
/** How far to each side of a change one looks for damage. */
const AROUND_BYTES = 5000;

type Choose = (count: number) => number;

/** The device and what it has to hold. */
interface Subject {
  readonly device: BlockDevice;
  readonly model: Uint8Array;
  readonly choose: Choose;
}

interface Range {
  readonly offset: number;
  readonly length: number;
}

type Step = (subject: Subject, range: Range) => Promise<void>;

const STEPS_BY_NAME: Readonly<Record<string, Step>> = {
  async read({ device, model }, { offset, length }) {
    await assertHolds(device, offset, model.subarray(offset, offset + length));
  },
  async readNow({ device, model }, { offset, length }) {
    const into = new Uint8Array(length);
    if (device.readNow(offset, into) !== -1) assertBytes(into, model.subarray(offset, offset + length), offset);
  },
  async write({ device, model, choose }, { offset, length }) {
    const bytes = pattern(offset, length, 1 + choose(1000));
    await device.write(offset, bytes, { fua: choose(8) === 0 });
    model.set(bytes, offset);
  },
  async writeNow({ device, model, choose }, { offset, length }) {
    const bytes = pattern(offset, length, 1 + choose(1000));
    if (device.writeNow(offset, bytes) !== -1) model.set(bytes, offset);
  },
  async writeZeroes({ device, model, choose }, { offset, length }) {
    const options = { fua: choose(8) === 0, noHole: choose(2) === 0, fastOnly: choose(3) === 0 };
    try {
      await device.writeZeroes(offset, length, options);
      model.fill(0, offset, offset + length);
    } catch (error) {
      if (!(options.fastOnly && error instanceof BlockError && error.code === "not-supported")) throw error;
    }
  },
  async discard({ device, model }, { offset, length }) {
    await device.discard(offset, length);
    const found = await readBytes(device, offset, length);
    for (const [at, byte] of found.entries()) {
      assert.ok(byte === 0 || byte === model[offset + at], `at offset ${offset + at}: ${byte} after a discard`);
    }
    model.set(found, offset);
  },
  async extents({ device, model }, { offset, length }) {
    if (length === 0) return;
    let at = offset;
    for (const extent of await device.extents(offset, length, 5)) {
      if (extent.zero) assert.ok(isZero(model.subarray(at, at + extent.length)), `${at}+${extent.length} is not zero`);
      at += extent.length;
    }
  },
  async flush({ device }) {
    await device.flush();
  },
};

export const randomRules: readonly ConformanceRule[] = [
  {
    title: "random operations leave a device as they leave an array of bytes",
    async run(target, seed) {
      const choose = chooser(seed);
      await using device = await makeFull(target);
      const subject: Subject = { device, model: pattern(0, device.sizeBytes), choose };
      const names = Object.keys(STEPS_BY_NAME);
      for (let turn = 0; turn < STEPS; turn++) {
        const name = names[choose(names.length)] ?? "read";
        const range = chooseRange(choose, device.sizeBytes);
        await STEPS_BY_NAME[name]?.(subject, range);
        await assertAround(subject, range);
      }
      await assertHolds(device, 0, subject.model);
    },
  },
];

/** At once, before a later step covers a mistake up. */
async function assertAround({ device, model }: Subject, { offset, length }: Range): Promise<void> {
  const start = Math.max(0, offset - AROUND_BYTES);
  await assertHolds(device, start, model.subarray(start, offset + length + AROUND_BYTES));
}

/** Of all lengths; start and end are often within two bytes of a border of some power of two. */
function chooseRange(choose: Choose, size: number): Range {
  const offset = nearBorder(choose, choose(size + 1));
  const lengthMax = [16, 700, 9000, 80_000][choose(4)] ?? 16;
  const end = nearBorder(choose, offset + choose(lengthMax));
  return { offset: Math.min(offset, size), length: Math.max(0, Math.min(end, size) - offset) };
}

/** Now and then `at` itself, otherwise a place near a border before it. */
function nearBorder(choose: Choose, at: number): number {
  if (choose(3) === 0) return at;
  const border = 2 ** (9 + choose(8));
  return Math.max(Math.floor(at / border) * border + choose(5) - 2, 0);
}
