/**
 * The channels of a link: their numbers, the memory they may take, which of them are being reset, and what becomes of
 * them when a new connection takes over.
 *
 * The side that dialled opens channels with odd numbers, the other one with even ones. A number is used again when both
 * sides have forgotten its channel; the serial, which only grows, tells one use from the next.
 *
 * A reset takes a question and an answer: whoever has sent RESET ignores what comes on the channel until the peer has
 * answered, or has reset it as well.
 */
import { Channel, type ChannelOwner, type ChannelParts } from "./channel.ts";
import { CHANNEL_ID_MAX, RESET_DESTROYED, RESET_LIMIT } from "./constants.ts";
import { LinkError, LinkProtocolError } from "./errors.ts";
import { encodeLabel, encodeReset, type Opening, type Reset } from "./frame.ts";
import type { Hello, HelloEntry } from "./hello.ts";
import { type ChannelKind, type LinkLimits, WINDOW_BYTES_MIN, WINDOW_SHARE } from "./limits.ts";

interface Leaving {
  readonly serial: number;
  readonly code: number;
  readonly text: string;
  sent: boolean;
}

export interface TableParts {
  /** 1 for the side that dialled, 0 for the other. */
  readonly parity: 0 | 1;
  readonly limits: LinkLimits;
  readonly channel: Pick<ChannelParts, "pool" | "chaos">;
  readonly receivedAsConsumed: boolean;
  /** A channel, or, when there is none, the table itself, may have something to send. */
  readonly wake: (channel: Channel | undefined) => void;
}

export class ChannelTable implements ChannelOwner {
  readonly #parts: TableParts;
  readonly #channels = new Map<number, Channel>();
  /** Channels that we have reset, until the peer has answered. */
  readonly #leaving = new Map<number, Leaving>();
  /** Answers that are to be given, by channel. */
  readonly #answers = new Map<number, number>();
  #serial = 0;
  #peerSerial = 0;
  #lastId: number;
  #memoryBytes = 0;

  constructor(parts: TableParts) {
    this.#parts = parts;
    this.#lastId = parts.parity - 2;
  }

  get channels(): readonly Channel[] {
    return [...this.#channels.values()];
  }

  /** Windows of all channels together. */
  get memoryBytes(): number {
    return this.#memoryBytes;
  }

  /** The highest serial that the peer has used. */
  get peerSerial(): number {
    return this.#peerSerial;
  }

  get(id: number): Channel | undefined {
    return this.#channels.get(id);
  }

  /** Throws `LinkError("limit")`, and a RangeError for a label that cannot be. */
  open(kind: ChannelKind, label: string): Channel {
    encodeLabel(label);
    const id = this.#freeId();
    if (id === undefined || this.#full) throw new LinkError("limit", `the link has ${this.#channels.size} channels`);
    return this.#add(id, { serial: ++this.#serial, kind, label }, true);
  }

  /** The peer has opened a channel. Undefined: it was refused. */
  accept(id: number, opening: Opening): Channel | undefined {
    if (id % 2 === this.#parts.parity)
      throw new LinkProtocolError(`the peer opened channel ${id}, which is not its to open`);
    if (opening.serial <= this.#peerSerial) throw new LinkProtocolError(`the peer opened channel ${id} out of turn`);
    if (this.#channels.has(id)) throw new LinkProtocolError(`the peer opened channel ${id}, which is open`);
    this.#peerSerial = opening.serial;
    // That it uses the number again says that it has forgotten the earlier channel.
    this.#leaving.delete(id);
    this.#answers.delete(id);
    if (!this.#full) return this.#add(id, opening, false);
    this.#leave(id, { serial: opening.serial, code: RESET_LIMIT, text: "too many channels", sent: false });
    return undefined;
  }

  wake(channel: Channel): void {
    this.#parts.wake(channel);
  }

  destroyed(channel: Channel): void {
    const { id, serial } = channel;
    this.#remove(channel);
    if (!channel.everAnnounced) return;
    this.#leave(id, { serial, code: RESET_DESTROYED, text: "", sent: false });
  }

  /** Whether frames on channel `id`, which is not open, are what is left of one that we have reset. */
  isLeaving(id: number): boolean {
    return this.#leaving.has(id);
  }

  onReset(id: number, reset: Reset, answer: boolean): void {
    const leaving = this.#leaving.get(id);
    if (leaving !== undefined && leaving.serial === reset.serial) {
      this.#leaving.delete(id);
      // Both have reset it: each takes the other's for the answer.
      if (answer || leaving.sent) return;
    } else if (answer) return;
    const channel = this.#channels.get(id);
    // An earlier channel of this number: that it was opened anew tells the peer enough.
    if (channel !== undefined && channel.serial !== reset.serial) return;
    this.#answers.set(id, reset.serial);
    if (channel !== undefined) {
      this.#remove(channel);
      const why =
        reset.text === "" ? "the peer has reset the channel" : `the peer has reset the channel: ${reset.text}`;
      channel.closeWith(new LinkError("reset", why));
    }
    this.#parts.wake(undefined);
  }

  /** RESET frames that are due. They count as sent. */
  takeControl(): Uint8Array[] {
    const frames: Uint8Array[] = [];
    for (const [id, serial] of this.#answers) {
      frames.push(encodeReset(id, { serial, code: RESET_DESTROYED, text: "" }, true));
    }
    this.#answers.clear();
    for (const [id, leaving] of this.#leaving) {
      if (!leaving.sent) frames.push(encodeReset(id, leaving));
      leaving.sent = true;
    }
    return frames;
  }

  /** Forgets a channel that both sides are through with. */
  forgetIfFinished(channel: Channel): void {
    if (channel.finished && this.#channels.get(channel.id) === channel) this.#remove(channel);
  }

  /** What a HELLO tells of the channels: credits, too, count as sent. */
  takeEntries(): HelloEntry[] {
    // What the peer does not know it would ignore, credit and all.
    const open = this.channels
      .filter(({ announced }) => announced)
      .map((channel) => {
        const entry = { ...channel.takeEntry(), resetting: false };
        return this.#parts.receivedAsConsumed ? { ...entry, received: entry.consumed } : entry;
      });
    const leaving = [...this.#leaving].map(([channel, { serial }]) => {
      return { channel, serial, resetting: true, received: 0, consumed: 0, windowBytes: 0 };
    });
    return [...open, ...leaving];
  }

  /** The same two processes go on, on a new connection. Throws `LinkProtocolError` when the sides do not agree. */
  resume(hello: Pick<Hello, "entries" | "lastSerial">): void {
    const known = new Map(hello.entries.map((entry) => [entry.channel, entry]));
    if (hello.lastSerial > this.#serial) throw new LinkProtocolError("the peer knows channels that were never opened");
    this.#answers.clear();
    for (const [id, leaving] of [...this.#leaving]) {
      leaving.sent = false;
      if (known.get(id)?.serial !== leaving.serial) this.#leaving.delete(id);
    }
    for (const channel of this.channels) {
      // The user of another one may have destroyed it.
      if (this.#channels.get(channel.id) !== channel) continue;
      const entry = known.get(channel.id);
      if (entry !== undefined && entry.serial === channel.serial) {
        // A RESET will follow.
        if (!entry.resetting) channel.resumeAt(entry);
      } else if (channel.everAnnounced) this.#resumeUnlisted(channel, hello.lastSerial);
    }
  }

  /** Ends every channel; with `keepNew` those stay that the peer cannot know of. */
  resetAll(error: LinkError, keepNew: boolean): void {
    this.#leaving.clear();
    this.#answers.clear();
    this.#peerSerial = 0;
    for (const channel of this.channels) {
      if (keepNew && !channel.everAnnounced) continue;
      this.#remove(channel);
      channel.closeWith(error);
    }
  }

  #resumeUnlisted(channel: Channel, lastSerial: number): void {
    if (channel.openedHere && channel.serial > lastSerial) {
      channel.resumeUnknown();
      return;
    }
    channel.resumeForgotten();
    this.#remove(channel);
  }

  get #full(): boolean {
    const { channelsMax, memoryBytesMax } = this.#parts.limits;
    return this.#channels.size >= channelsMax || this.#memoryBytes + 2 * WINDOW_BYTES_MIN > memoryBytesMax;
  }

  #add(id: number, opening: Opening, openedHere: boolean): Channel {
    const { limits, channel: common } = this.#parts;
    const left = (limits.memoryBytesMax - this.#memoryBytes) * WINDOW_SHARE;
    const windowBytes = Math.min(limits.windowBytes[opening.kind], Math.max(WINDOW_BYTES_MIN, Math.floor(left)));
    const channel = new Channel({
      ...common,
      ...opening,
      owner: this,
      channel: id,
      openedHere,
      windowBytes,
      capacityBytes: Math.max(windowBytes, WINDOW_BYTES_MIN),
    });
    this.#channels.set(id, channel);
    this.#memoryBytes += channel.memoryBytes;
    this.#parts.wake(channel);
    return channel;
  }

  #remove(channel: Channel): void {
    this.#channels.delete(channel.id);
    this.#memoryBytes -= channel.memoryBytes;
  }

  #leave(id: number, leaving: Leaving): void {
    this.#leaving.set(id, leaving);
    this.#parts.wake(undefined);
  }

  /** Numbers take turns, so that one is not used again sooner than need be. */
  #freeId(): number | undefined {
    for (let tries = 0; tries <= CHANNEL_ID_MAX; tries += 2) {
      this.#lastId += 2;
      if (this.#lastId > CHANNEL_ID_MAX) this.#lastId = this.#parts.parity === 1 ? 1 : 2;
      const taken = this.#channels.has(this.#lastId) || this.#leaving.has(this.#lastId);
      if (this.#lastId > 0 && !taken) return this.#lastId;
    }
    return undefined;
  }
}
