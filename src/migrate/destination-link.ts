/**
 * The destination's end of the link: keeps a link, dials, opens the message channel, and opens it anew whenever it was
 * lost. A link that has ended for good is followed by another one, for as long as the migration needs one: a source that
 * was stopped in order says goodbye too.
 */
import type { Env } from "../env/env.ts";
import type { Channel } from "../link/channel.ts";
import { LinkError } from "../link/errors.ts";
import type { LinkLimits } from "../link/limits.ts";
import { Link } from "../link/link.ts";
import { LinkDialer } from "../link/link-dialer.ts";
import type { LinkIdentity } from "../link/link-options.ts";
import type { LinkState } from "../link/link-states.ts";
import type { Upgraded } from "../link/upgrade.ts";
import { openNbd } from "../nbd/client/connect.ts";
import type { ServerLog } from "../nbd/server/server-log.ts";
import { Change } from "../stream/change.ts";
import type { SourceSession } from "../stream/source-session.ts";
import { messageOf } from "./errors.ts";
import { MessagePort } from "./message-port.ts";
import { type FromDestination, FromSource } from "./messages.ts";
import { MESSAGE_LABEL, TUNNEL_PREFIX } from "./source-link.ts";

export type DestinationPort = MessagePort<typeof FromSource, FromDestination>;

const HANDSHAKE_MS_MAX = 60_000;
const REOPEN_MS = 100;
const RELINK_MS = 1000;

export interface DestinationLinkOptions {
  readonly env: Env;
  readonly log: ServerLog;
  readonly limits: Partial<LinkLimits>;
  readonly ownId: string;
  /** The migration, once nothing else will do. */
  readonly linkId: () => string | undefined;
  readonly identity: () => LinkIdentity;
  readonly connect: (signal: AbortSignal) => Promise<Upgraded>;
  readonly onTunnel: ((name: string, channel: Channel) => void) | undefined;
  /** A new channel, on which the peer waits for `join`. */
  readonly onPort: (port: DestinationPort) => void;
  readonly onMessage: (port: DestinationPort, message: FromSource) => void;
  readonly onPortClosed: (port: DestinationPort) => void;
  readonly onConnected: (connected: boolean) => void;
  /** The peer will not have this link. False: then there will be no other one. */
  readonly onRefused: (why: string) => boolean;
}

export class DestinationLink {
  readonly #options: DestinationLinkOptions;
  readonly #change = new Change();
  readonly #abort = new AbortController();
  readonly #demandSessions = new Set<SourceSession>();
  #link: Link | undefined;
  #port: DestinationPort | undefined;
  #trackingId: string | undefined;
  #running: Promise<void> = Promise.resolve();

  constructor(options: DestinationLinkOptions) {
    this.#options = options;
  }

  get link(): Link | undefined {
    return this.#link;
  }

  get connected(): boolean {
    return this.#link?.state === "connected";
  }

  get port(): DestinationPort | undefined {
    return this.#port;
  }

  get isWelcome(): boolean {
    return this.#trackingId !== undefined;
  }

  /** Begins to dial. */
  start(): void {
    this.#running = this.#run();
  }

  /** The source has welcomed us on the present port: sessions may be opened. */
  welcome(trackingId: string): void {
    this.#trackingId = trackingId;
    this.#change.notify();
  }

  /** A session of one disk with the source, once it has welcomed us. `pull`: one whose reads mark what they read. */
  async openSession(kind: "read" | "pull", disk: string, signal: AbortSignal): Promise<SourceSession> {
    const { link, trackingId } = await this.#welcomed(signal);
    const pulls = kind === "pull";
    const channel = link.open(pulls ? "background" : "demand", pulls ? `pull/${disk}/${trackingId}` : `read/${disk}`);
    const { clock } = this.#options.env;
    const session = await openNbd(channel, clock, { exportName: disk, handshakeTimeoutMs: HANDSHAKE_MS_MAX, signal });
    if (pulls) return session;
    this.#demandSessions.add(session);
    session.onLost(() => this.#demandSessions.delete(session));
    return session;
  }

  /** Reads that guests wait for shall not outlast the link. */
  dropDemandSessions(): void {
    for (const session of this.#demandSessions) session.drop("the link is down");
  }

  /** Waits until the source has welcomed us. Rejects with the signal's reason. */
  async #welcomed(signal: AbortSignal): Promise<{ readonly link: Link; readonly trackingId: string }> {
    const aborted = Promise.withResolvers<never>();
    aborted.promise.catch(() => undefined);
    const onAbort = (): void => aborted.reject(signal.reason);
    signal.addEventListener("abort", onAbort, { once: true });
    try {
      for (;;) {
        signal.throwIfAborted();
        if (this.#link !== undefined && this.#trackingId !== undefined) {
          return { link: this.#link, trackingId: this.#trackingId };
        }
        await Promise.race([this.#change.next(), aborted.promise]);
      }
    } finally {
      signal.removeEventListener("abort", onAbort);
    }
  }

  /** No more of it. Idempotent. */
  async close(): Promise<void> {
    this.#abort.abort(new LinkError("closed", "the destination is ending"));
    this.#change.notify();
    await this.#link?.close();
    await this.#running;
  }

  async #run(): Promise<void> {
    const { signal } = this.#abort;
    const { env, connect, log, onRefused } = this.#options;
    while (!signal.aborted) {
      const final = Promise.withResolvers<void>();
      const link = this.#newLink();
      this.#link = link;
      const unsubscribe = link.onFinal(() => final.resolve());
      const dialer = new LinkDialer({ env, link, connect, log });
      this.#openPort(link);
      if (signal.aborted) await link.close();
      await final.promise;
      unsubscribe();
      await dialer.close();
      await link.close();
      if (link.state === "refused" && !onRefused(messageOf(link.lastError))) return;
      await this.#pause(RELINK_MS);
    }
  }

  #newLink(): Link {
    const { env, ownId, identity, limits, log, linkId } = this.#options;
    const id = linkId();
    const link: Link = new Link({
      ...{ env, role: "dialling", ownId, identity, limits, log },
      ...(id !== undefined && { linkId: id }),
      onChannel: (channel) => this.#onChannel(channel),
      onState: (state: LinkState) => {
        if (link === this.#link) this.#options.onConnected(state === "connected");
      },
    });
    return link;
  }

  #onChannel(channel: Channel): void {
    const { onTunnel } = this.#options;
    const isTunnel = channel.kind === "tunnel" && channel.label.startsWith(TUNNEL_PREFIX);
    if (isTunnel && onTunnel !== undefined) onTunnel(channel.label.slice(TUNNEL_PREFIX.length), channel);
    else channel.destroy();
  }

  #openPort(link: Link): void {
    const { onPort, onMessage, onPortClosed, log } = this.#options;
    if (link !== this.#link || link.state === "closed" || link.state === "refused") return;
    let channel: Channel;
    try {
      channel = link.open("message", MESSAGE_LABEL);
    } catch (error) {
      // Somebody else's streams have all the channels that there are.
      log.warn(`there is no message channel yet: ${messageOf(error)}`);
      this.#openPortLater(link);
      return;
    }
    const port: DestinationPort = new MessagePort(channel, FromSource, {
      onMessage: (message) => {
        if (port === this.#port) onMessage(port, message);
      },
      onClose: (why) => {
        log.debug("the message channel has closed", { why });
        if (port !== this.#port) return;
        this.#port = undefined;
        this.#trackingId = undefined;
        onPortClosed(port);
        this.#openPortLater(link);
      },
    });
    this.#port = port;
    onPort(port);
  }

  #openPortLater(link: Link): void {
    void this.#pause(REOPEN_MS).then(() => this.#openPort(link));
  }

  #pause(ms: number): Promise<void> {
    const { signal } = this.#abort;
    return new Promise((resolve) => {
      const done = (): void => {
        timer.cancel();
        signal.removeEventListener("abort", done);
        resolve();
      };
      const timer = this.#options.env.clock.setTimer(ms, done);
      signal.addEventListener("abort", done, { once: true });
      if (signal.aborted) done();
    });
  }
}
