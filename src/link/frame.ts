/**
 * Frames of the link, but for HELLO (`hello.ts`): layout, encoding, and decoding of what is not DATA.
 *
 * ```
 * header   0 u8 type   1 u8 channel   2 u16 flags   4 u32 length                                  8 payload
 * OPEN     0 u32 serial   4 u8 kind   5 u8 label length   6 label (UTF-8)
 * DATA     bytes
 * CREDIT   0 u64 offset   8 u32 window                                                            (12)
 * CLOSE    0 u64 offset                                      on channel 0: nothing
 * RESET    0 u32 serial   4 u16 code   6 u16 zero   8 text (UTF-8)
 * PING     8 bytes, returned as they are in PONG
 * ```
 *
 * Invariant: `checkHeader` accepts a header before one byte of its payload is looked at, or room for it is made.
 */
import {
  FRAME_CLOSE,
  FRAME_CREDIT,
  FRAME_DATA,
  FRAME_HEADER_BYTES,
  FRAME_HELLO,
  FRAME_OPEN,
  FRAME_PAYLOAD_MAX,
  FRAME_PING,
  FRAME_PONG,
  FRAME_RESET,
  LINK_CHANNEL,
  RESET_ANSWER,
} from "./constants.ts";
import { LinkProtocolError } from "./errors.ts";
import { CHANNEL_KINDS, type ChannelKind, LABEL_BYTES_MAX, RESET_TEXT_BYTES_MAX } from "./limits.ts";

const TWO_32 = 2 ** 32;
const OPEN_FIXED_BYTES = 6;
const CREDIT_BYTES = 12;
const CLOSE_BYTES = 8;
const RESET_FIXED_BYTES = 8;
export const PING_BYTES = 8;

export const HELLO_FIXED_BYTES = 108;
export const HELLO_ENTRY_BYTES = 28;
/** No frame but DATA is longer. */
export const CONTROL_PAYLOAD_MAX = HELLO_FIXED_BYTES + 255 * HELLO_ENTRY_BYTES;

const encoder = new TextEncoder();
const decoder = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

export interface FrameHeader {
  type: number;
  channel: number;
  flags: number;
  length: number;
}

interface Form {
  /** On channel 0, on others, or on both. */
  readonly where: "link" | "channel" | "both";
  readonly min: number;
  readonly max: number;
  readonly flags: number;
}

const FORMS: ReadonlyMap<number, Form> = new Map<number, Form>([
  [FRAME_HELLO, { where: "link", min: HELLO_FIXED_BYTES, max: CONTROL_PAYLOAD_MAX, flags: 0 }],
  [FRAME_OPEN, { where: "channel", min: OPEN_FIXED_BYTES, max: OPEN_FIXED_BYTES + LABEL_BYTES_MAX, flags: 0 }],
  [FRAME_DATA, { where: "channel", min: 1, max: FRAME_PAYLOAD_MAX, flags: 0 }],
  [FRAME_CREDIT, { where: "channel", min: CREDIT_BYTES, max: CREDIT_BYTES, flags: 0 }],
  [FRAME_CLOSE, { where: "both", min: 0, max: CLOSE_BYTES, flags: 0 }],
  [
    FRAME_RESET,
    { where: "both", min: RESET_FIXED_BYTES, max: RESET_FIXED_BYTES + RESET_TEXT_BYTES_MAX, flags: RESET_ANSWER },
  ],
  [FRAME_PING, { where: "link", min: PING_BYTES, max: PING_BYTES, flags: 0 }],
  [FRAME_PONG, { where: "link", min: PING_BYTES, max: PING_BYTES, flags: 0 }],
]);

/** Throws `LinkProtocolError` for a header that no frame can have. */
export function checkHeader({ type, channel, flags, length }: FrameHeader): void {
  const form = FORMS.get(type);
  if (form === undefined) throw new LinkProtocolError(`there is no frame of type ${type}`);
  if ((form.where === "link") !== (channel === LINK_CHANNEL) && form.where !== "both") {
    throw new LinkProtocolError(`a frame of type ${type} does not belong on channel ${channel}`);
  }
  if ((flags & ~form.flags) !== 0) throw new LinkProtocolError(`a frame of type ${type} has the flags ${flags}`);
  const closes = type === FRAME_CLOSE ? (channel === LINK_CHANNEL ? 0 : CLOSE_BYTES) : length;
  if (length < form.min || length > form.max || length !== closes) {
    throw new LinkProtocolError(`a frame of type ${type} says that it has ${length} bytes`);
  }
}

export function readHeader(bytes: Uint8Array, at: number, into: FrameHeader): void {
  into.type = bytes[at] as number;
  into.channel = bytes[at + 1] as number;
  into.flags = ((bytes[at + 2] as number) << 8) | (bytes[at + 3] as number);
  into.length =
    (((bytes[at + 4] as number) << 24) |
      ((bytes[at + 5] as number) << 16) |
      ((bytes[at + 6] as number) << 8) |
      (bytes[at + 7] as number)) >>>
    0;
}

/** Writes a DATA header at `at`. */
export function putDataHeader(out: Uint8Array, at: number, channel: number, length: number): void {
  out[at] = FRAME_DATA;
  out[at + 1] = channel;
  out[at + 2] = 0;
  out[at + 3] = 0;
  out[at + 4] = length >>> 24;
  out[at + 5] = length >>> 16;
  out[at + 6] = length >>> 8;
  out[at + 7] = length;
}

/** A whole frame, owned by the caller, with `payload` still to be filled in. */
export function newFrame(header: FrameHeader): { frame: Uint8Array; payload: DataView } {
  const frame = new Uint8Array(FRAME_HEADER_BYTES + header.length);
  const view = viewOf(frame);
  view.setUint8(0, header.type);
  view.setUint8(1, header.channel);
  view.setUint16(2, header.flags);
  view.setUint32(4, header.length);
  return { frame, payload: new DataView(frame.buffer, FRAME_HEADER_BYTES) };
}

export interface Opening {
  readonly serial: number;
  readonly kind: ChannelKind;
  readonly label: string;
}

export function encodeOpen(channel: number, { serial, kind, label }: Opening): Uint8Array {
  const text = encodeLabel(label);
  const { frame, payload } = newFrame({ type: FRAME_OPEN, channel, flags: 0, length: OPEN_FIXED_BYTES + text.length });
  payload.setUint32(0, serial);
  payload.setUint8(4, CHANNEL_KINDS.indexOf(kind));
  payload.setUint8(5, text.length);
  frame.set(text, FRAME_HEADER_BYTES + OPEN_FIXED_BYTES);
  return frame;
}

/** The bytes of a label. Throws a RangeError: such a label comes from our own side. */
export function encodeLabel(label: string): Uint8Array {
  const bytes = encoder.encode(label);
  if (bytes.length > LABEL_BYTES_MAX || label.includes("\0") || !label.isWellFormed()) {
    throw new RangeError(`a label has at most ${LABEL_BYTES_MAX} bytes, and no NUL`);
  }
  return bytes;
}

export function decodeOpen(payload: Uint8Array): Opening {
  const view = viewOf(payload);
  const kind = CHANNEL_KINDS[view.getUint8(4)];
  if (kind === undefined) throw new LinkProtocolError(`there is no channel of kind ${view.getUint8(4)}`);
  const text = payload.subarray(OPEN_FIXED_BYTES);
  if (text.length !== view.getUint8(5)) throw new LinkProtocolError("the length of a label does not fit its frame");
  if (text.includes(0)) throw new LinkProtocolError("a label contains a NUL");
  return { serial: view.getUint32(0), kind, label: decodeText(text, "a label") };
}

export interface Credit {
  readonly offset: number;
  readonly windowBytes: number;
}

export function encodeCredit(channel: number, { offset, windowBytes }: Credit): Uint8Array {
  const { frame, payload } = newFrame({ type: FRAME_CREDIT, channel, flags: 0, length: CREDIT_BYTES });
  writeU64(payload, 0, offset);
  payload.setUint32(8, windowBytes);
  return frame;
}

export function decodeCredit(payload: Uint8Array): Credit {
  const view = viewOf(payload);
  return { offset: readU64(view, 0), windowBytes: view.getUint32(8) };
}

export function encodeClose(channel: number, offset: number): Uint8Array {
  const length = channel === LINK_CHANNEL ? 0 : CLOSE_BYTES;
  const { frame, payload } = newFrame({ type: FRAME_CLOSE, channel, flags: 0, length });
  if (length > 0) writeU64(payload, 0, offset);
  return frame;
}

export function decodeClose(payload: Uint8Array): number {
  return readU64(viewOf(payload), 0);
}

export interface Reset {
  readonly serial: number;
  readonly code: number;
  readonly text: string;
}

export function encodeReset(channel: number, { serial, code, text }: Reset, answer = false): Uint8Array {
  // Cut at a character: whatever is said, it must not be refused.
  const said = new Uint8Array(RESET_TEXT_BYTES_MAX);
  const { written } = encoder.encodeInto(text, said);
  const length = RESET_FIXED_BYTES + written;
  const { frame, payload } = newFrame({ type: FRAME_RESET, channel, flags: answer ? RESET_ANSWER : 0, length });
  payload.setUint32(0, serial);
  payload.setUint16(4, code);
  frame.set(said.subarray(0, written), FRAME_HEADER_BYTES + RESET_FIXED_BYTES);
  return frame;
}

export function decodeReset(payload: Uint8Array): Reset {
  const view = viewOf(payload);
  const text = decodeText(payload.subarray(RESET_FIXED_BYTES), "the text of a RESET");
  return { serial: view.getUint32(0), code: view.getUint16(4), text };
}

/** `token` is opaque to the peer. */
export function encodePing(type: typeof FRAME_PING | typeof FRAME_PONG, token: Uint8Array): Uint8Array {
  const { frame } = newFrame({ type, channel: LINK_CHANNEL, flags: 0, length: PING_BYTES });
  frame.set(token, FRAME_HEADER_BYTES);
  return frame;
}

export function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

/** Values above 2^53−1 become Infinity, so that the one range check that follows rejects them. */
export function readU64(view: DataView, at: number): number {
  const high = view.getUint32(at);
  return high >= 0x20_0000 ? Infinity : high * TWO_32 + view.getUint32(at + 4);
}

export function writeU64(view: DataView, at: number, value: number): void {
  view.setUint32(at, Math.floor(value / TWO_32));
  view.setUint32(at + 4, value % TWO_32);
}

function decodeText(bytes: Uint8Array, what: string): string {
  try {
    return decoder.decode(bytes);
  } catch (cause) {
    throw new LinkProtocolError(`${what} is not UTF-8`, { cause });
  }
}
