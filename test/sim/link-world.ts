/**
 * Two hosts with a link between them, in the simulator: the source listens, with an NBD server as its port, and the
 * destination dials and upgrades.
 */
import type { ByteStream } from "../../src/env/links.ts";
import type { Channel } from "../../src/link/channel.ts";
import type { LinkChaosPoint } from "../../src/link/chaos-points.ts";
import { LinkProtocolError } from "../../src/link/errors.ts";
import type { LinkLimits } from "../../src/link/limits.ts";
import { Link } from "../../src/link/link.ts";
import { LinkDialer } from "../../src/link/link-dialer.ts";
import { dialLink, linkPort } from "../../src/link/upgrade.ts";
import { NbdServer } from "../../src/nbd/server/server.ts";
import { type SimEnv, type SimHost, SimWorld } from "./sim-env.ts";

export const LINK_ADDRESS = { kind: "tcp", host: "source", port: 7000 } as const;
export const MIGRATION = "a1".repeat(16);
export const SOURCE_ID = "50".repeat(16);
export const DEST_ID = "de".repeat(16);

export const quietLog = { debug: () => {}, info: () => {}, warn: () => {}, error: () => {} };

export interface LinkWorldOptions {
  readonly mutants?: readonly LinkChaosPoint[];
  readonly limits?: Partial<LinkLimits>;
}

/** A process of one side. */
export interface Side {
  readonly env: SimEnv;
  readonly link: Link;
  readonly dialer: LinkDialer | undefined;
  readonly port: NbdServer | undefined;
}

export class LinkWorld {
  readonly world: SimWorld;
  readonly #options: LinkWorldOptions;
  #source: Side | undefined;
  #dest: Side | undefined;
  /** What one side found wrong with the other. There must be none: both are ours. */
  readonly violations: Error[] = [];
  /** Told of channels that the peer of `side` has opened there. */
  onChannel: (side: "source" | "dest", channel: Channel) => void = (_side, channel) => channel.destroy();

  constructor(seed: number, options: LinkWorldOptions = {}) {
    this.world = new SimWorld(seed);
    this.#options = options;
    for (const name of ["source", "dest"]) this.#host(name).chaos = new Set(options.mutants);
  }

  get source(): Side {
    if (this.#source === undefined) throw new Error("the source does not run");
    return this.#source;
  }

  get dest(): Side {
    if (this.#dest === undefined) throw new Error("the destination does not run");
    return this.#dest;
  }

  /** Starts, or starts anew. */
  startSource(): Side {
    const env = this.#host("source").restart();
    const link: Link = new Link({
      env,
      role: "listening",
      linkId: MIGRATION,
      ownId: SOURCE_ID,
      identity: () => ({ trackingId: "70".repeat(16), term: 1 }),
      onChannel: (channel) => this.onChannel("source", channel),
      onState: () => this.#noteViolation(link),
      limits: this.#options.limits ?? {},
      log: quietLog,
    });
    const port = new NbdServer({ clock: env.clock, exports: [], upgrade: linkPort(() => link), log: quietLog });
    env.links.listen(LINK_ADDRESS, (stream: ByteStream) => port.accept(stream));
    this.#source = { env, link, dialer: undefined, port };
    return this.#source;
  }

  startDest(): Side {
    const env = this.#host("dest").restart();
    const link: Link = new Link({
      env,
      role: "dialling",
      ownId: DEST_ID,
      identity: () => ({ trackingId: "00".repeat(16), term: 0 }),
      onChannel: (channel) => this.onChannel("dest", channel),
      onState: () => this.#noteViolation(link),
      limits: this.#options.limits ?? {},
      log: quietLog,
    });
    const connect = (signal: AbortSignal) => dialLink(env, { address: LINK_ADDRESS, tls: { mode: "off" }, signal });
    const dialer = new LinkDialer({ env, link, connect, log: quietLog });
    this.#dest = { env, link, dialer, port: undefined };
    return this.#dest;
  }

  /** Closes both links, and checks that nothing is left. */
  async close(): Promise<void> {
    const { scheduler } = this.world;
    await scheduler.complete(this.dest.link.close());
    await scheduler.complete(this.dest.dialer?.close() ?? Promise.resolve());
    await scheduler.complete(this.source.link.close());
    await scheduler.complete(this.source.port?.close() ?? Promise.resolve());
    await scheduler.idle();
    this.dest.env.checkNothingLeft();
    this.source.env.checkNothingLeft();
    const { connections } = this.world.net;
    if (connections.length > 0) throw new Error(`${connections.length} connections are still open`);
  }

  #noteViolation({ lastError }: Link): void {
    if (lastError instanceof LinkProtocolError) this.violations.push(lastError);
  }

  #host(name: string): SimHost {
    return this.world.host(name);
  }
}
