/**
 * HELLO: who speaks, and how far it has got with each channel. The side that dialled sends one first; the other one
 * answers with its own, or with a RESET of channel 0.
 *
 * ```
 *   0  u32  magic "blkf"                88  u64  term
 *   4  u16  version                     96  u32  attempt: counts the connections of a dialling process
 *   6  u16  flags: 0 RESUMED           100  u32  highest serial of a channel that the peer has opened here
 *   8  16B  link id (the migration)    104  u16  number of entries
 *  24  16B  sender id                  106  u16  zero
 *  40  16B  sender's epoch             108  entries
 *  56  16B  peer's epoch, as known
 *  72  16B  tracking id
 *
 * entry    0 u8 channel   1 u8 flags: 0 RESETTING   2 u16 zero   4 u32 serial
 *          8 u64 received   16 u64 consumed   24 u32 window                                           (28)
 * ```
 *
 * 16 zero bytes stand for "not known". An epoch is drawn when a process starts: it tells a cut from a restart.
 * `received` is what has arrived in order, whether or not it was read; `consumed` and `window` are a CREDIT. The end of a
 * channel counts as one byte more. Of a channel that is being reset nothing is told.
 */
import {
  ENTRY_RESETTING,
  FRAME_HEADER_BYTES,
  FRAME_HELLO,
  HELLO_RESUMED,
  LINK_CHANNEL,
  LINK_MAGIC,
  LINK_VERSION,
} from "./constants.ts";
import { LinkProtocolError } from "./errors.ts";
import { HELLO_ENTRY_BYTES, HELLO_FIXED_BYTES, newFrame, readU64, viewOf, writeU64 } from "./frame.ts";

export const ID_BYTES = 16;
/** "Not known." */
export const NO_ID = "00".repeat(ID_BYTES);

export interface HelloEntry {
  readonly channel: number;
  readonly serial: number;
  readonly resetting: boolean;
  readonly received: number;
  readonly consumed: number;
  readonly windowBytes: number;
}

/** Ids are 32 lower-case hexadecimal digits. */
export interface Hello {
  readonly version: number;
  readonly resumed: boolean;
  readonly linkId: string;
  readonly senderId: string;
  readonly epoch: string;
  readonly peerEpoch: string;
  readonly trackingId: string;
  readonly term: number;
  readonly attempt: number;
  readonly lastSerial: number;
  readonly entries: readonly HelloEntry[];
}

export function encodeHello(hello: Hello): Uint8Array {
  const length = HELLO_FIXED_BYTES + hello.entries.length * HELLO_ENTRY_BYTES;
  const { frame, payload } = newFrame({ type: FRAME_HELLO, channel: LINK_CHANNEL, flags: 0, length });
  payload.setUint32(0, LINK_MAGIC);
  payload.setUint16(4, hello.version);
  payload.setUint16(6, hello.resumed ? HELLO_RESUMED : 0);
  const ids = [hello.linkId, hello.senderId, hello.epoch, hello.peerEpoch, hello.trackingId];
  for (const [index, id] of ids.entries()) frame.set(parseId(id), FRAME_HEADER_BYTES + 8 + index * ID_BYTES);
  writeU64(payload, 88, hello.term);
  payload.setUint32(96, hello.attempt);
  payload.setUint32(100, hello.lastSerial);
  payload.setUint16(104, hello.entries.length);
  for (const [index, entry] of hello.entries.entries()) {
    const at = HELLO_FIXED_BYTES + index * HELLO_ENTRY_BYTES;
    payload.setUint8(at, entry.channel);
    payload.setUint8(at + 1, entry.resetting ? ENTRY_RESETTING : 0);
    payload.setUint32(at + 4, entry.serial);
    writeU64(payload, at + 8, entry.received);
    writeU64(payload, at + 16, entry.consumed);
    payload.setUint32(at + 24, entry.windowBytes);
  }
  return frame;
}

/** Throws `LinkProtocolError`. A HELLO of another version is decoded no further than that: see `version`. */
export function decodeHello(payload: Uint8Array): Hello {
  const view = viewOf(payload);
  if (view.getUint32(0) !== LINK_MAGIC) throw new LinkProtocolError("a HELLO does not begin with its magic number");
  const version = view.getUint16(4);
  const count = version === LINK_VERSION ? view.getUint16(104) : 0;
  if (version === LINK_VERSION && payload.length !== HELLO_FIXED_BYTES + count * HELLO_ENTRY_BYTES) {
    throw new LinkProtocolError("the number of entries of a HELLO does not fit its length");
  }
  const term = readU64(view, 88);
  if (term === Infinity) throw new LinkProtocolError("a HELLO has a term beyond all bounds");
  const id = (index: number): string => formatId(payload.subarray(8 + index * ID_BYTES, 8 + (index + 1) * ID_BYTES));
  return {
    version,
    resumed: (view.getUint16(6) & HELLO_RESUMED) !== 0,
    linkId: id(0),
    senderId: id(1),
    epoch: id(2),
    peerEpoch: id(3),
    trackingId: id(4),
    term,
    attempt: view.getUint32(96),
    lastSerial: view.getUint32(100),
    entries: decodeEntries(view, count),
  };
}

function decodeEntries(view: DataView, count: number): HelloEntry[] {
  const entries: HelloEntry[] = [];
  const seen = new Set<number>();
  for (let index = 0; index < count; index++) {
    const at = HELLO_FIXED_BYTES + index * HELLO_ENTRY_BYTES;
    const channel = view.getUint8(at);
    const received = readU64(view, at + 8);
    const consumed = readU64(view, at + 16);
    if (channel === LINK_CHANNEL || seen.has(channel) || received === Infinity || consumed > received) {
      throw new LinkProtocolError(`a HELLO has an entry for channel ${channel} that cannot be`);
    }
    seen.add(channel);
    const resetting = (view.getUint8(at + 1) & ENTRY_RESETTING) !== 0;
    const windowBytes = view.getUint32(at + 24);
    entries.push({ channel, serial: view.getUint32(at + 4), resetting, received, consumed, windowBytes });
  }
  return entries;
}

/** The bytes of an id. Throws a RangeError: such an id comes from our own side. */
export function parseId(id: string): Uint8Array {
  if (!/^[0-9a-f]{32}$/.test(id)) throw new RangeError("an id has 32 hexadecimal digits");
  return Uint8Array.from({ length: ID_BYTES }, (_, index) => Number.parseInt(id.slice(2 * index, 2 * index + 2), 16));
}

export function formatId(bytes: Uint8Array): string {
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
