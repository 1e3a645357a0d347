/**
 * Walks over a msgpack value without decoding it, and refuses what would make a decoder allocate more than the bytes are
 * worth: an array or map that says it has more members than bytes follow, nesting without end, binary and extension
 * types, which no message has. (A decoder makes room for an array as soon as it has read its length: three bytes, `dc ff
 * ff`, nested in each other in a message of 64 KiB, would cost it gigabytes.)
 *
 * Source: the msgpack specification, "Formats".
 */
import { ControlProtocolError } from "./errors.ts";
import { DEPTH_MAX } from "./limits.ts";

/** Throws `ControlProtocolError` unless `bytes` are exactly one msgpack map, all of which is there. */
export function checkShape(bytes: Uint8Array): void {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  /** Values still to come, by depth. */
  const open: number[] = [];
  let at = 0;
  if (!isMap(bytes[0])) throw new ControlProtocolError("a message is not a map");
  do {
    if (at >= bytes.length) throw new ControlProtocolError("a message ends within a value");
    const { size, children } = headOf(view, at);
    at += size;
    if (at + children > bytes.length) throw new ControlProtocolError("a value is longer than its message");
    if (open.length > 0) open[open.length - 1] = (open.at(-1) ?? 0) - 1;
    if (children > 0) open.push(children);
    if (open.length > DEPTH_MAX) throw new ControlProtocolError("a message is nested too deeply");
    while (open.at(-1) === 0) open.pop();
  } while (open.length > 0);
  if (at !== bytes.length) throw new ControlProtocolError("a message has bytes after its map");
}

interface Head {
  /** Bytes of this value, those of its children left out. */
  readonly size: number;
  /** Values that follow and belong to it. */
  readonly children: number;
}

function headOf(view: DataView, at: number): Head {
  const type = view.getUint8(at);
  if (type < 0x80 || type >= 0xe0) return leaf(1); // positive and negative fixint
  if (type < 0x90) return { size: 1, children: 2 * (type & 0x0f) }; // fixmap
  if (type < 0xa0) return { size: 1, children: type & 0x0f }; // fixarray
  if (type < 0xc0) return leaf(1 + (type & 0x1f)); // fixstr
  const simple = LEAF_BYTES[type - 0xc0] ?? 0;
  if (simple > 0) return leaf(simple);
  switch (type) {
    case 0xd9:
      return leaf(2 + lengthAt(view, at, 1));
    case 0xda:
      return leaf(3 + lengthAt(view, at, 2));
    case 0xdb:
      return leaf(5 + lengthAt(view, at, 4));
    case 0xdc:
      return { size: 3, children: lengthAt(view, at, 2) };
    case 0xdd:
      return { size: 5, children: lengthAt(view, at, 4) };
    case 0xde:
      return { size: 3, children: 2 * lengthAt(view, at, 2) };
    case 0xdf:
      return { size: 5, children: 2 * lengthAt(view, at, 4) };
    default:
      throw new ControlProtocolError(`a message has a value of the type 0x${type.toString(16)}`);
  }
}

/** From 0xc0 on: nil, (never used), false, true, 3 × bin, 3 × ext, float 32 and 64, uint 8–64, int 8–64. */
const LEAF_BYTES = [1, 0, 1, 1, 0, 0, 0, 0, 0, 0, 5, 9, 2, 3, 5, 9, 2, 3, 5, 9];

function leaf(size: number): Head {
  return { size, children: 0 };
}

function lengthAt(view: DataView, at: number, bytes: 1 | 2 | 4): number {
  if (at + 1 + bytes > view.byteLength) throw new ControlProtocolError("a message ends within a length");
  if (bytes === 1) return view.getUint8(at + 1);
  return bytes === 2 ? view.getUint16(at + 1) : view.getUint32(at + 1);
}

function isMap(type: number | undefined): boolean {
  return type !== undefined && ((type & 0xf0) === 0x80 || type === 0xde || type === 0xdf);
}
