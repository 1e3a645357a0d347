/**
 * What a rule of the contract is, what it needs from an implementation, and the tools that rules are written with.
 * Nothing here knows a test framework: a rule fails by throwing an `AssertionError`.
 */
import assert from "node:assert/strict";
import type { BlockDevice } from "../device.ts";
import { BlockError, type BlockErrorCode } from "../error.ts";

export interface WantedDevice {
  readonly sizeBytes: number;
  /** What it holds at first, `sizeBytes` long; zeroes where absent. */
  readonly content?: Uint8Array;
  readonly readOnly?: boolean;
}

/** An implementation under test. What is optional is what some implementations cannot do; rules that need it are left out. */
export interface ConformanceTarget {
  /** A fresh device. The rule closes it. */
  make(wanted: WantedDevice): Promise<BlockDevice>;
  /** All sizes that are asked for are multiples of this. Default 1. */
  readonly sizeMultiple?: number;
  /** The largest size that `make` can give. Default 4 TiB and some bytes, which is the most that is asked for. */
  readonly sizeMaxBytes?: number;
  /** True when there are no read-only devices of this kind. */
  readonly alwaysWritable?: boolean;
  /** Cuts the power under `device` and opens what is left of it: what was made durable, and any part of the rest. */
  readonly afterPowerLoss?: (device: BlockDevice) => Promise<BlockDevice>;
  /** Makes the next sync of the storage under `device` fail; syncs after it would seem to succeed. */
  readonly failNextSync?: (device: BlockDevice) => void;
}

export type ConformanceNeed = "afterPowerLoss" | "failNextSync" | "anySize" | "largeSize" | "readOnly";

export interface ConformanceRule {
  /** A sentence about behaviour. */
  readonly title: string;
  readonly needs?: ConformanceNeed;
  /** `seed` decides all random choices. */
  run(target: ConformanceTarget, seed: number): Promise<void>;
}

export const LARGE_SIZE_BYTES = 2 ** 42 + 4097;

/** Whether `target` can do what `rule` needs. */
export function applies(rule: ConformanceRule, target: ConformanceTarget): boolean {
  return rule.needs === undefined || canDo(target, rule.needs);
}

function canDo(target: ConformanceTarget, need: ConformanceNeed): boolean {
  switch (need) {
    case "afterPowerLoss":
      return target.afterPowerLoss !== undefined;
    case "failNextSync":
      return target.failNextSync !== undefined;
    case "anySize":
      return (target.sizeMultiple ?? 1) === 1;
    case "largeSize":
      return (target.sizeMaxBytes ?? Infinity) >= roundUp(LARGE_SIZE_BYTES, target.sizeMultiple);
    case "readOnly":
      return target.alwaysWritable !== true;
  }
}

export function roundUp(sizeBytes: number, multiple = 1): number {
  return Math.ceil(sizeBytes / multiple) * multiple;
}

/** The size that most rules work on: small, and no multiple of anything unless it must be. */
export function usualSize(target: ConformanceTarget): number {
  return roundUp(200_003, target.sizeMultiple);
}

/** A device of the usual size, full of `pattern`. */
export function makeFull(target: ConformanceTarget, more: Partial<WantedDevice> = {}): Promise<BlockDevice> {
  const sizeBytes = usualSize(target);
  return target.make({ sizeBytes, content: pattern(0, sizeBytes), ...more });
}

/** Bytes for [offset, offset + length), none zero, each depending on its own offset and on `salt`. */
export function pattern(offset: number, length: number, salt = 0): Uint8Array {
  const bytes = new Uint8Array(length);
  for (let i = 0; i < length; i++) {
    const at = offset + i;
    let mixed = (at % 2 ** 32) ^ Math.imul(Math.floor(at / 2 ** 32) + salt * 7919, 0x85ebca6b);
    mixed = Math.imul(mixed ^ (mixed >>> 16), 0x21f0aaad);
    mixed = Math.imul(mixed ^ (mixed >>> 15), 0x735a2d97);
    bytes[i] = 1 + (((mixed ^ (mixed >>> 15)) >>> 8) % 255);
  }
  return bytes;
}

export async function readBytes(device: BlockDevice, offset: number, length: number): Promise<Uint8Array> {
  const into = new Uint8Array(length).fill(0xee);
  await device.read(offset, into);
  return into;
}

/** Fails with the first place that differs, not with a dump of both. */
export function assertBytes(actual: Uint8Array, expected: Uint8Array, offset = 0): void {
  assert.equal(actual.length, expected.length, "wrong number of bytes");
  if (Buffer.compare(actual, expected) === 0) return;
  const at = actual.findIndex((byte, index) => byte !== expected[index]);
  assert.fail(`at offset ${offset + at}: ${actual[at]} where ${expected[at]} was expected`);
}

export async function assertHolds(device: BlockDevice, offset: number, expected: Uint8Array): Promise<void> {
  assertBytes(await readBytes(device, offset, expected.length), expected, offset);
}

/** The operation must not throw at once, and its promise must reject with a `BlockError` of one of the codes. */
export async function assertRefused(
  what: string,
  operation: () => Promise<unknown>,
  ...codes: BlockErrorCode[]
): Promise<void> {
  const promise = operation();
  const outcome = await promise.then(
    () => "success",
    (error: unknown) => error,
  );
  assert.ok(outcome instanceof BlockError, `${what}: ${String(outcome)} instead of a BlockError`);
  assert.ok(codes.includes(outcome.code), `${what}: "${outcome.code}" instead of "${codes.join('" or "')}"`);
}

/** As `assertRefused` for `writeNow`, which may also decline by −1. */
export function assertDeclined(what: string, operation: () => number, ...codes: BlockErrorCode[]): void {
  let outcome: unknown;
  try {
    outcome = operation();
  } catch (error) {
    assert.ok(error instanceof BlockError, `${what}: threw ${String(error)} instead of a BlockError`);
    assert.ok(codes.includes(error.code), `${what}: "${error.code}" instead of "${codes.join('" or "')}"`);
    return;
  }
  assert.equal(outcome, -1, `${what}: was not declined`);
}

/** A copy of `bytes` with `change` laid over it at `offset`. */
export function overlaid(bytes: Uint8Array, offset: number, change: Uint8Array): Uint8Array {
  const copy = bytes.slice();
  copy.set(change, offset);
  return copy;
}

export function zeroes(length: number): Uint8Array {
  return new Uint8Array(length);
}

/** Whole numbers for rules: `next(n)` is in 0..n−1. Mulberry32, so that a seed repeats a run. */
export function chooser(seed: number): (count: number) => number {
  let state = seed >>> 0;
  return (count) => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return Math.floor((((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32) * count);
  };
}
