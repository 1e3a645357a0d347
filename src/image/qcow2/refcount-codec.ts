/** Reference counts in refcount blocks: 2^order bits each, order 0 … 6 (docs/interop/qcow2, "Host cluster management"). */
import { readU64BE, writeU64BE } from "../tables/u64-big.ts";

export interface CountCodec {
  readonly bits: number;
  /** The largest count, or 2^53 − 1. */
  readonly max: number;
  get(view: DataView, index: number): number;
  /** `value` is at most `max`. */
  set(view: DataView, index: number, value: number): void;
}

/** Within a byte, the first count is in the lowest bits. */
function withinBytes(bits: 1 | 2 | 4): CountCodec {
  const perByte = 8 / bits;
  const max = 2 ** bits - 1;
  const shiftOf = (index: number): number => (index % perByte) * bits;
  return {
    bits,
    max,
    get: (view, index) => (view.getUint8(Math.floor(index / perByte)) >>> shiftOf(index)) & max,
    set(view, index, value) {
      const at = Math.floor(index / perByte);
      const rest = view.getUint8(at) & ~(max << shiftOf(index));
      view.setUint8(at, rest | (value << shiftOf(index)));
    },
  };
}

const CODECS: readonly CountCodec[] = [
  withinBytes(1),
  withinBytes(2),
  withinBytes(4),
  {
    bits: 8,
    max: 255,
    get: (view, index) => view.getUint8(index),
    set: (view, index, value) => view.setUint8(index, value),
  },
  {
    bits: 16,
    max: 65_535,
    get: (view, index) => view.getUint16(2 * index),
    set: (view, index, value) => view.setUint16(2 * index, value),
  },
  {
    bits: 32,
    max: 2 ** 32 - 1,
    get: (view, index) => view.getUint32(4 * index),
    set: (view, index, value) => view.setUint32(4 * index, value),
  },
  {
    bits: 64,
    max: Number.MAX_SAFE_INTEGER,
    get: (view, index) => readU64BE(view, 8 * index),
    set: (view, index, value) => writeU64BE(view, 8 * index, value),
  },
];

export function countCodec(order: number): CountCodec {
  const codec = CODECS[order];
  if (codec === undefined) throw new RangeError(`there are no reference counts of order ${order}`);
  return codec;
}
