/**
 * The source's end of the link: one `Link` after the other, each for one destination, and what its channels are for. A
 * channel's label says that:
 *
 * | label | kind | |
 * | --- | --- | --- |
 * | `migration` | message | messages (`messages.ts`); the latest counts |
 * | `read/DISK` | demand | an NBD session whose reads mean nothing |
 * | `pull/DISK/TRACKING` | background | one whose reads mark what they read as clean, in the round of that tracking id |
 * | `tunnel/NAME` | tunnel | somebody else's stream |
 */
import type { Env } from "../env/env.ts";
import type { Channel } from "../link/channel.ts";
import type { LinkLimits } from "../link/limits.ts";
import { Link } from "../link/link.ts";
import type { LinkIdentity } from "../link/link-options.ts";
import type { LinkState } from "../link/link-states.ts";
import { linkPort } from "../link/upgrade.ts";
import type { SessionUpgrade } from "../nbd/server/connection.ts";
import type { ServerLog } from "../nbd/server/server-log.ts";
import { Change } from "../stream/change.ts";
import { MessagePort } from "./message-port.ts";
import { FromDestination, type FromSource } from "./messages.ts";
import type { SourceDisk } from "./source-disk.ts";

export type SourcePort = MessagePort<typeof FromDestination, FromSource>;

export const MESSAGE_LABEL = "migration";
export const TUNNEL_PREFIX = "tunnel/";
/** How long the destination may take to hang up once it was told that it is over. */
const GOODBYE_MS_MAX = 1000;

export interface SourceLinkOptions {
  readonly env: Env;
  readonly log: ServerLog;
  readonly limits: Partial<LinkLimits>;
  readonly ownId: string;
  readonly disks: readonly SourceDisk[];
  readonly identity: () => LinkIdentity;
  readonly onTunnel: ((name: string, channel: Channel) => void) | undefined;
  readonly onMessage: (port: SourcePort, message: FromDestination) => void;
  readonly onPortClosed: (port: SourcePort) => void;
  readonly onConnected: (connected: boolean) => void;
}

export class SourceLink {
  /** Of the port that destinations dial: its connections go to whichever link there is. */
  readonly upgrade: SessionUpgrade;
  readonly #options: SourceLinkOptions;
  #link: Link;
  #linkId: string;
  #peerId: string | undefined;
  #port: SourcePort | undefined;
  #closed = false;
  readonly #change = new Change();
  readonly #leaving = new Set<Promise<void>>();

  constructor(options: SourceLinkOptions, linkId: string, peerId: string | undefined) {
    this.#options = options;
    this.#linkId = linkId;
    this.#peerId = peerId;
    this.#link = this.#open();
    this.upgrade = linkPort(() => this.#link);
  }

  get link(): Link {
    return this.#link;
  }

  get connected(): boolean {
    return this.#link.state === "connected";
  }

  /** The message channel that the destination opened last. */
  get port(): SourcePort | undefined {
    return this.#port;
  }

  /** Another migration: the destination has a moment to hang up, then whoever comes is a new one. */
  async renew(linkId: string): Promise<void> {
    this.#linkId = linkId;
    this.#peerId = undefined;
    const old = this.#link;
    await this.#goodbye(old);
    if (this.#link === old) this.#replace();
  }

  async close(): Promise<void> {
    this.#closed = true;
    this.#change.notify();
    await this.#link.close();
    await Promise.all(this.#leaving);
  }

  /** Ends when the peer has gone, or does not go. */
  async #goodbye(link: Link): Promise<void> {
    let late = false;
    const timer = this.#options.env.clock.setTimer(GOODBYE_MS_MAX, () => {
      late = true;
      this.#change.notify();
    });
    while (link.state === "connected" && !late && !this.#closed) await this.#change.next();
    timer.cancel();
  }

  #replace(): void {
    if (this.#closed) return;
    const old = this.#link;
    this.#link = this.#open();
    const leaving = old.close().finally(() => this.#leaving.delete(leaving));
    this.#leaving.add(leaving);
  }

  #open(): Link {
    const { env, ownId, identity, limits, log } = this.#options;
    const link: Link = new Link({
      ...{ env, role: "listening", linkId: this.#linkId, ownId, identity, limits, log },
      ...(this.#peerId !== undefined && { peerId: this.#peerId }),
      onChannel: (channel) => this.#onChannel(channel),
      onState: (state) => this.#onState(link, state),
    });
    return link;
  }

  #onState(link: Link, state: LinkState): void {
    this.#change.notify();
    if (link !== this.#link) return;
    this.#options.onConnected(state === "connected");
    // The peer has said goodbye. It, or another one, may come again.
    if (state === "closed" || state === "refused") queueMicrotask(() => link === this.#link && this.#replace());
  }

  #onChannel(channel: Channel): void {
    const { label, kind } = channel;
    const [use = "", name = "", tracking] = label.split("/");
    const disk = this.#options.disks.find((it) => it.name === name);
    if (label === MESSAGE_LABEL && kind === "message") this.#openPort(channel);
    else if (use === "read" && kind === "demand" && disk !== undefined) disk.serve("read", channel);
    else if (use === "pull" && kind === "background" && disk !== undefined && this.#isCurrent(tracking)) {
      disk.serve("pull", channel);
    } else if (use === "tunnel" && kind === "tunnel" && this.#options.onTunnel !== undefined) {
      this.#options.onTunnel(label.slice(TUNNEL_PREFIX.length), channel);
    } else channel.destroy();
  }

  #isCurrent(tracking: string | undefined): boolean {
    return tracking === this.#options.identity().trackingId;
  }

  #openPort(channel: Channel): void {
    const old = this.#port;
    const port: SourcePort = new MessagePort(channel, FromDestination, {
      onMessage: (message) => {
        if (this.#port === port) this.#options.onMessage(port, message);
      },
      onClose: (why) => {
        this.#options.log.debug("a message channel has closed", { why });
        if (this.#port === port) this.#port = undefined;
        this.#options.onPortClosed(port);
      },
    });
    this.#port = port;
    old?.close();
  }
}
