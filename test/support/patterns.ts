/**
 * Contents for test images. Every 8-byte word tells its own offset and the pattern's salt, and none of its bytes pairs
 * make a word of zeroes: a block from the wrong place, an old block, or one that was never filled shows at once.
 */
import { closeSync, fstatSync, ftruncateSync, openSync, readSync, writeSync } from "node:fs";

const WORD_BYTES = 8;
const STEP_BYTES = 2 ** 20;

/** The pattern of [offset, offset + length). `salt` is 1..65,535. */
export function pattern(offset: number, length: number, salt = 1): Buffer {
  const first = Math.floor(offset / WORD_BYTES);
  const last = Math.ceil((offset + length) / WORD_BYTES);
  const words = new Uint32Array((last - first) * 2);
  for (let i = 0; i < last - first; i++) {
    const index = first + i;
    words[2 * i] = index >>> 0;
    words[2 * i + 1] = (0x8000_0000 | ((Math.floor(index / 2 ** 32) & 0x7f) << 24) | salt) >>> 0;
  }
  const skip = offset - first * WORD_BYTES;
  return Buffer.from(words.buffer).subarray(skip, skip + length);
}

/** A range of a file: filled with the pattern of `salt`, or, with salt 0, a hole. */
export interface Region {
  readonly offset: number;
  readonly length: number;
  readonly salt: number;
}

/** Makes (or replaces) `path`: `sizeBytes` long, holding `regions`; everything else is a hole. */
export function makeImage(path: string, sizeBytes: number, regions?: readonly Region[]): void {
  const fd = openSync(path, "w");
  try {
    ftruncateSync(fd, sizeBytes);
    for (const { offset, length, salt } of regions ?? [{ offset: 0, length: sizeBytes, salt: 1 }]) {
      if (salt === 0) continue;
      for (let done = 0; done < length; done += STEP_BYTES) {
        const bytes = pattern(offset + done, Math.min(STEP_BYTES, length - done), salt);
        writeSync(fd, bytes, 0, bytes.length, offset + done);
      }
    }
  } finally {
    closeSync(fd);
  }
}

/** Bytes of a file, read directly; throws when there are fewer. */
export function fileBytes(path: string, offset: number, length: number): Buffer {
  const fd = openSync(path, "r");
  try {
    const bytes = Buffer.alloc(length);
    const count = readSync(fd, bytes, 0, length, offset);
    if (count !== length) throw new Error(`${path} has ${count} bytes at ${offset}, not ${length}`);
    return bytes;
  } finally {
    closeSync(fd);
  }
}

/**
 * Compares a file with what it should hold: `regions`, later ones over earlier ones, zeroes (a hole) elsewhere. Returns
 * undefined when all is well, otherwise a sentence about the first difference.
 */
export function imageDifference(path: string, sizeBytes: number, regions: readonly Region[]): string | undefined {
  const fd = openSync(path, "r");
  try {
    const actualBytes = fstatSync(fd).size;
    if (actualBytes !== sizeBytes) return `${path} has ${actualBytes} bytes, not ${sizeBytes}`;
    const actual = Buffer.alloc(STEP_BYTES);
    for (let at = 0; at < sizeBytes; at += STEP_BYTES) {
      const length = Math.min(STEP_BYTES, sizeBytes - at);
      readSync(fd, actual, 0, length, at);
      const found = firstDifference(actual.subarray(0, length), contents(at, length, regions));
      if (found !== undefined) return `${path} differs at ${at + found.index}: ${found.text}`;
    }
    return undefined;
  } finally {
    closeSync(fd);
  }
}

/** Where two buffers of equal length first differ, in words for a message. */
export function firstDifference(actual: Buffer, expected: Buffer): { index: number; text: string } | undefined {
  if (actual.equals(expected)) return undefined;
  const index = actual.findIndex((byte, i) => byte !== expected[i]);
  const [is, should] = [actual, expected].map((buffer) => buffer.subarray(index, index + WORD_BYTES).toString("hex"));
  return { index, text: `${is} instead of ${should}` };
}

function contents(offset: number, length: number, regions: readonly Region[]): Buffer {
  const bytes = Buffer.alloc(length);
  for (const region of regions) {
    const start = Math.max(region.offset, offset);
    const end = Math.min(region.offset + region.length, offset + length);
    if (end <= start) continue;
    if (region.salt === 0) bytes.fill(0, start - offset, end - offset);
    else pattern(start, end - start, region.salt).copy(bytes, start - offset);
  }
  return bytes;
}
