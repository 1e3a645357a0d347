/**
 * Who sends next: messages before demand before tunnels before background, except that the background has its share of
 * what is sent while it has something to send. Channels of one kind take turns, by bytes.
 *
 * A channel is looked at when it is woken. One that turns out to have nothing to send is not looked at again until then.
 */
import type { Channel } from "./channel.ts";
import { BACKGROUND_SHARE, CHANNEL_KINDS, type ChannelKind, DATA_BYTES_MAX } from "./limits.ts";

/** What the background earns for each byte that others send. */
const EARNED_PER_BYTE = BACKGROUND_SHARE / (1 - BACKGROUND_SHARE);

/** Channels of one kind. Each has a count of bytes; the one with the lowest is next. */
class Turns {
  readonly #ready = new Map<Channel, number>();
  /** Counts of channels that are not ready, so that being empty for a moment gains nothing. */
  readonly #resting = new WeakMap<Channel, number>();
  /** The lowest count of late. Whoever comes begins there at the earliest. */
  #floor = 0;

  add(channel: Channel): void {
    if (this.#ready.has(channel)) return;
    this.#ready.set(channel, Math.max(this.#floor, this.#resting.get(channel) ?? 0));
  }

  get next(): Channel | undefined {
    let next: Channel | undefined;
    let lowest = Infinity;
    for (const [channel, count] of this.#ready) {
      if (!channel.sendable) this.#rest(channel, count);
      else if (count < lowest) [next, lowest] = [channel, count];
    }
    if (next !== undefined) this.#floor = Math.max(this.#floor, lowest);
    return next;
  }

  charge(channel: Channel, bytes: number): void {
    const count = this.#ready.get(channel);
    if (count !== undefined) this.#ready.set(channel, count + bytes);
  }

  clear(): void {
    this.#ready.clear();
  }

  #rest(channel: Channel, count: number): void {
    this.#ready.delete(channel);
    this.#resting.set(channel, count);
  }
}

export interface OrderChaos {
  readonly priorityInverted: boolean;
  readonly backgroundStarves: boolean;
}

export class SendOrder {
  readonly #turns: Readonly<Record<ChannelKind, Turns>> = {
    message: new Turns(),
    demand: new Turns(),
    tunnel: new Turns(),
    background: new Turns(),
  };
  readonly #kinds: readonly ChannelKind[];
  readonly #chaos: OrderChaos;
  /** Bytes that the background may send before the others. */
  #earned = 0;

  constructor(chaos: OrderChaos) {
    this.#chaos = chaos;
    this.#kinds = chaos.priorityInverted ? CHANNEL_KINDS.toReversed() : CHANNEL_KINDS;
  }

  /** `channel` may have data to send. */
  wake(channel: Channel): void {
    if (channel.sendable) this.#turns[channel.kind].add(channel);
  }

  next(): Channel | undefined {
    const background = this.#turns.background.next;
    if (background === undefined) this.#earned = 0;
    else if (this.#earned >= DATA_BYTES_MAX) return background;
    for (const kind of this.#kinds) {
      const { next } = this.#turns[kind];
      if (next !== undefined) return next;
    }
    return undefined;
  }

  /** `channel`, which was next, has sent so many bytes. */
  charge(channel: Channel, bytes: number): void {
    this.#turns[channel.kind].charge(channel, bytes);
    if (channel.kind === "background") this.#earned = Math.max(0, this.#earned - bytes);
    else if (!this.#chaos.backgroundStarves) this.#earned += bytes * EARNED_PER_BYTE;
  }

  /** The connection is gone: whoever has something to send is woken again on the next one. */
  clear(): void {
    for (const kind of CHANNEL_KINDS) this.#turns[kind].clear();
    this.#earned = 0;
  }
}
