/** The other side of a link, played by hand: frames are put together here, byte by byte, and not by the code under test. */
import type { ByteSink } from "../../../src/env/links.ts";
import type { Channel } from "../../../src/link/channel.ts";
import type { LinkLimits } from "../../../src/link/limits.ts";
import { Link } from "../../../src/link/link.ts";
import type { LinkOptions } from "../../../src/link/link-options.ts";
import type { LinkState } from "../../../src/link/link-states.ts";
import { Prng } from "../../support/seed.ts";
import { type PairedStream, streamPair } from "../../support/stream-pair.ts";
import { ManualClock } from "../nbd/client/manual-clock.ts";

export const HELLO = 1;
export const OPEN = 2;
export const DATA = 3;
export const CREDIT = 4;
export const CLOSE = 5;
export const RESET = 6;
export const PING = 7;
export const PONG = 8;

export interface RawFrame {
  readonly type: number;
  readonly channel: number;
  readonly flags: number;
  readonly payload: Buffer;
}

export function frame(type: number, channel: number, payload: Buffer = Buffer.alloc(0), flags = 0): Buffer {
  const header = Buffer.alloc(8);
  header.writeUInt8(type, 0);
  header.writeUInt8(channel, 1);
  header.writeUInt16BE(flags, 2);
  header.writeUInt32BE(payload.length, 4);
  return Buffer.concat([header, payload]);
}

/** A header that lies about its length. */
export function header(type: number, channel: number, length: number): Buffer {
  const bytes = frame(type, channel);
  bytes.writeUInt32BE(length, 4);
  return bytes;
}

export interface HelloFields {
  readonly magic?: number;
  readonly version?: number;
  readonly resumed?: boolean;
  readonly linkId?: string;
  readonly senderId?: string;
  readonly epoch?: string;
  readonly peerEpoch?: string;
  readonly attempt?: number;
  readonly lastSerial?: number;
  readonly entries?: readonly {
    channel: number;
    serial: number;
    received: number;
    consumed?: number;
    flags?: number;
  }[];
}

const NONE = "00".repeat(16);

export function hello(fields: HelloFields = {}): Buffer {
  const entries = fields.entries ?? [];
  const payload = Buffer.alloc(108 + 28 * entries.length);
  payload.writeUInt32BE(fields.magic ?? 0x626c6b66, 0);
  payload.writeUInt16BE(fields.version ?? 1, 4);
  payload.writeUInt16BE(fields.resumed === true ? 1 : 0, 6);
  const ids = [
    fields.linkId ?? "a1".repeat(16),
    fields.senderId ?? "de".repeat(16),
    fields.epoch ?? "e1".repeat(16),
    fields.peerEpoch ?? NONE,
    NONE,
  ];
  for (const [index, id] of ids.entries()) payload.write(id, 8 + 16 * index, "hex");
  payload.writeUInt32BE(fields.attempt ?? 1, 96);
  payload.writeUInt32BE(fields.lastSerial ?? 0, 100);
  payload.writeUInt16BE(entries.length, 104);
  for (const [index, entry] of entries.entries()) {
    const at = 108 + 28 * index;
    payload.writeUInt8(entry.channel, at);
    payload.writeUInt8(entry.flags ?? 0, at + 1);
    payload.writeUInt32BE(entry.serial, at + 4);
    payload.writeBigUInt64BE(BigInt(entry.received), at + 8);
    payload.writeBigUInt64BE(BigInt(entry.consumed ?? 0), at + 16);
    payload.writeUInt32BE(65_536, at + 24);
  }
  return frame(HELLO, 0, payload);
}

export function open(channel: number, serial: number, { kind = 1, label = "x" } = {}): Buffer {
  const text = Buffer.from(label);
  const payload = Buffer.alloc(6 + text.length);
  payload.writeUInt32BE(serial, 0);
  payload.writeUInt8(kind, 4);
  payload.writeUInt8(text.length, 5);
  text.copy(payload, 6);
  return frame(OPEN, channel, payload);
}

export function credit(channel: number, offset: number, windowBytes: number): Buffer {
  const payload = Buffer.alloc(12);
  payload.writeBigUInt64BE(BigInt(offset), 0);
  payload.writeUInt32BE(windowBytes, 8);
  return frame(CREDIT, channel, payload);
}

export function close(channel: number, offset: number): Buffer {
  const payload = Buffer.alloc(8);
  payload.writeBigUInt64BE(BigInt(offset), 0);
  return frame(CLOSE, channel, payload);
}

export function reset(channel: number, serial: number, { code = 1, flags = 0 } = {}): Buffer {
  const payload = Buffer.alloc(8);
  payload.writeUInt32BE(serial, 0);
  payload.writeUInt16BE(code, 4);
  return frame(RESET, channel, payload, flags);
}

export function cut(bytes: Buffer): { frames: RawFrame[]; rest: Buffer } {
  const frames: RawFrame[] = [];
  let rest = bytes;
  while (rest.length >= 8 && rest.length >= 8 + rest.readUInt32BE(4)) {
    const length = rest.readUInt32BE(4);
    const [type, channel, flags] = [rest.readUInt8(0), rest.readUInt8(1), rest.readUInt16BE(2)];
    frames.push({ type, channel, flags, payload: rest.subarray(8, 8 + length) });
    rest = rest.subarray(8 + length);
  }
  return { frames, rest };
}

/** A connection to the link under test. */
export class RawPeer implements ByteSink {
  readonly stream: PairedStream;
  readonly far: PairedStream;
  #held = Buffer.alloc(0);
  closed = false;
  #ended = false;

  constructor(link: Link) {
    const { client, server } = streamPair();
    this.stream = client;
    this.far = server;
    client.attach(this);
    link.attach(server).catch(() => {});
  }

  send(...frames: Buffer[]): void {
    if (!this.#ended) this.stream.write(Buffer.concat(frames));
  }

  /** Everything that has come so far, taken away. */
  async frames(): Promise<RawFrame[]> {
    await settle();
    const { frames, rest } = cut(this.#held);
    this.#held = Buffer.from(rest);
    return frames;
  }

  onBytes(bytes: Uint8Array): void {
    this.#held = Buffer.concat([this.#held, bytes]);
  }
  onEnd(): void {
    this.#ended = true;
    this.stream.end();
  }
  onClose(): void {
    this.#ended = true;
    this.closed = true;
  }
  onDrain(): void {}
}

/** Lets everything happen that needs no time. */
export async function settle(): Promise<void> {
  for (let i = 0; i < 5; i++) await new Promise((resolve) => setImmediate(resolve));
}

export interface Rig {
  readonly link: Link;
  readonly clock: ManualClock;
  readonly channels: Channel[];
  readonly states: LinkState[];
}

export function rig(options: Partial<LinkOptions> & { limits?: Partial<LinkLimits> } = {}): Rig {
  const clock = new ManualClock();
  const rng = new Prng(1, "rig");
  const random = { next: () => rng.float(), fill: (into: Uint8Array) => rng.fill(into) };
  const channels: Channel[] = [];
  const states: LinkState[] = [];
  const link = new Link({
    env: { clock, random, chaos: { on: () => false } },
    role: "listening",
    linkId: "a1".repeat(16),
    ownId: "50".repeat(16),
    identity: () => ({ trackingId: "70".repeat(16), term: 3 }),
    onChannel: (channel) => channels.push(channel),
    onState: (state) => states.push(state),
    log: { info: () => {}, warn: () => {} },
    ...options,
  });
  return { link, clock, channels, states };
}

/** A rig whose link is connected to a peer played by hand. */
export async function connected(options: Parameters<typeof rig>[0] = {}): Promise<Rig & { peer: RawPeer }> {
  const made = rig(options);
  const peer = new RawPeer(made.link);
  peer.send(hello());
  const [first, ping] = await peer.frames();
  if (first?.type !== HELLO || ping?.type !== PING) throw new Error("the link did not answer the hello");
  peer.send(frame(PONG, 0, ping.payload));
  await settle();
  return { ...made, peer };
}

/** Notes what a channel tells. */
export class Noting implements ByteSink {
  readonly parts: Buffer[] = [];
  readonly told: string[] = [];
  error: Error | undefined;
  onBytes(bytes: Uint8Array): void {
    this.parts.push(Buffer.from(bytes));
  }
  onEnd(): void {
    this.told.push("end");
  }
  onClose(error?: Error): void {
    this.told.push("close");
    this.error = error;
  }
  onDrain(): void {
    this.told.push("drain");
  }
  get bytes(): Buffer {
    return Buffer.concat(this.parts);
  }
}
