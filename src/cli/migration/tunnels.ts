/**
 * `--tunnel NAME=unix:PATH`: somebody else's streams (a VMM's memory, say) over the link. The source listens on PATH, and
 * each connection there is one channel, for which the destination connects to its own PATH.
 */
import { resolve } from "node:path";
import type { ByteStream, Links } from "../../env/links.ts";
import { DiskName } from "../../migrate/owner-record.ts";
import { listenOn } from "../../os/listen.ts";
import type { Cleanup } from "../cleanup.ts";
import { usageError } from "../cli-error.ts";
import type { Log } from "../log.ts";
import { joinStreams } from "./join-streams.ts";
import { RESERVED_TUNNELS } from "./qmp.ts";

export interface TunnelPlan {
  readonly name: string;
  readonly path: string;
}

const SPEC = /^([^=]+)=unix:(.+)$/s;

export function planTunnels(specs: readonly string[], directory: string): TunnelPlan[] {
  const tunnels = specs.map((spec): TunnelPlan => {
    const [, name = "", path = ""] = SPEC.exec(spec) ?? [];
    if (RESERVED_TUNNELS.includes(name)) {
      throw usageError("cannot use --tunnel", `${name} is the name of a tunnel of --qmp`, "choose another name");
    }
    if (DiskName.safeParse(name).success) return { name, path: resolve(directory, path) };
    const why = `${JSON.stringify(spec)} is not NAME=unix:PATH`;
    throw usageError("cannot use --tunnel", why, "write it as in ram=unix:/run/ram.sock");
  });
  if (new Set(tunnels.map(({ name }) => name)).size === tunnels.length) return tunnels;
  throw usageError("cannot use --tunnel", "two tunnels have the same name", "name each of them once");
}

export interface ListenForTunnels {
  readonly tunnels: readonly TunnelPlan[];
  /** Opens a channel; throws when there is no link to open it on. */
  open(name: string): ByteStream;
  readonly log: Log;
  readonly cleanup: Cleanup;
}

/** The source's end. */
export async function listenForTunnels({ tunnels, open, log, cleanup }: ListenForTunnels): Promise<void> {
  for (const { name, path } of tunnels) {
    const listener = await listenOn({ kind: "unix", path }, (stream) => {
      try {
        void joinStreams(stream, open(name));
      } catch (error) {
        log.warn("a tunnel cannot be opened", { tunnel: name, why: (error as Error).message });
        stream.destroy();
      }
    });
    cleanup.defer(() => listener.close());
  }
}

/** The destination's end. */
export class TunnelExits {
  readonly #tunnels: readonly TunnelPlan[];
  readonly #links: Links;
  readonly #log: Log;
  readonly #open = new Set<Promise<void>>();

  constructor(tunnels: readonly TunnelPlan[], links: Links, log: Log) {
    this.#tunnels = tunnels;
    this.#links = links;
    this.#log = log;
  }

  /** Takes a channel that the source has opened. */
  take(name: string, channel: ByteStream): void {
    const path = this.#tunnels.find((tunnel) => tunnel.name === name)?.path;
    if (path === undefined) {
      this.#log.warn("the source has opened a tunnel that is not known here", { tunnel: name });
      channel.destroy();
      return;
    }
    const passing = this.#pass(name, path, channel).finally(() => this.#open.delete(passing));
    this.#open.add(passing);
  }

  /** Resolves when there is nothing in any of them. */
  async idle(): Promise<void> {
    while (this.#open.size > 0) await Promise.all(this.#open);
  }

  async #pass(name: string, path: string, channel: ByteStream): Promise<void> {
    try {
      await joinStreams(channel, await this.#links.dial({ kind: "unix", path }));
    } catch (error) {
      this.#log.warn("nobody takes a tunnel's connection", { tunnel: name, why: (error as Error).message });
      channel.destroy();
    }
  }
}
