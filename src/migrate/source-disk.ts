/** One disk of a source: as its guest uses it, and as the sessions of the destination read it. */
import type { Chaos } from "../env/chaos.ts";
import type { Clock } from "../env/clock.ts";
import type { Channel } from "../link/channel.ts";
import { NbdServer } from "../nbd/server/server.ts";
import type { ServerLog } from "../nbd/server/server-log.ts";
import { HeatMap } from "../stream/heat.ts";
import { GrainSet, grainBytesFor } from "./grain-set.ts";
import { encodeHeat } from "./late-order.ts";
import { type FromSource, HEAT_REGIONS_MAX } from "./messages.ts";
import { SessionDevice } from "./session-device.ts";
import { SourceDevice } from "./source-device.ts";
import type { SourceDisk as DiskOptions, SourceDiskStatus } from "./source-options.ts";
import type { WriteGate } from "./write-gate.ts";

/** Of one session's requests: a destination has two sessions a disk. */
const PAYLOAD_BYTES_MAX = 24 * 1024 * 1024;
/** A link that is down takes no part in a handshake, and that is no reason to end the session. */
const HANDSHAKE_MS_MAX = 600_000;
/** Those that come and go between the hottest ones take memory, and are not sent. */
const HEAT_REGIONS_KEPT = 2 * HEAT_REGIONS_MAX;

interface Session {
  readonly server: NbdServer;
  readonly device: SessionDevice;
}

export interface SourceDiskParts {
  readonly clock: Clock;
  readonly chaos: Chaos;
  readonly log: ServerLog;
  readonly gate: WriteGate;
  readonly grainBytes: number | undefined;
  readonly heatRegionBytes: number | undefined;
}

export type SessionKind = "read" | "pull";

export class SourceDisk {
  readonly name: string;
  readonly image: string;
  readonly sizeBytes: number;
  readonly clean: GrainSet;
  readonly gate: WriteGate;
  /** For the guest. */
  readonly guest: SourceDevice;
  /** For plain clients of the link port. */
  readonly plain: SessionDevice;
  readonly device: DiskOptions["device"];
  readonly #parts: SourceDiskParts;
  readonly #heat: HeatMap;
  readonly #sessions = new Map<SessionKind, Session>();
  readonly #closing = new Set<Promise<void>>();

  constructor({ name, image, device }: DiskOptions, parts: SourceDiskParts) {
    this.name = name;
    this.image = image;
    this.device = device;
    this.sizeBytes = device.sizeBytes;
    this.gate = parts.gate;
    this.#parts = parts;
    const { heatRegionBytes: regionBytes } = parts;
    this.#heat = new HeatMap(parts.clock, {
      regionsMax: HEAT_REGIONS_KEPT,
      ...(regionBytes !== undefined && { regionBytes }),
    });
    this.clean = new GrainSet(device.sizeBytes, parts.grainBytes ?? grainBytesFor(device.sizeBytes));
    this.guest = new SourceDevice({ device, clean: this.clean, heat: this.#heat, gate: parts.gate });
    this.plain = new SessionDevice({ device, chaos: parts.chaos });
  }

  /** Serves the destination on a channel. The session before it, if any, does nothing more from now on. */
  serve(kind: SessionKind, channel: Channel): void {
    this.#end(kind);
    const { clock, chaos, log } = this.#parts;
    const pulls = kind === "pull" ? { clean: this.clean } : {};
    const device = new SessionDevice({ device: this.device, chaos, ...pulls });
    const server = new NbdServer({
      clock,
      exports: [{ name: this.name, device, readOnly: true }],
      limits: { payloadBytesMax: PAYLOAD_BYTES_MAX, handshakeTimeoutMs: HANDSHAKE_MS_MAX, connectionsMax: 1 },
      log,
    });
    this.#sessions.set(kind, { server, device });
    server.accept(channel);
  }

  /** A new round: the destination begins with nothing, and what earlier sessions still do must not count. */
  beginTracking(): void {
    this.endSessions();
    this.clean.clear();
    this.clean.unseal();
  }

  endSessions(): void {
    for (const kind of [...this.#sessions.keys()]) this.#end(kind);
  }

  /** What the guest used most, unless it used nothing. */
  heat(): FromSource | undefined {
    const { regionBytes, regions } = this.#heat.snapshot(HEAT_REGIONS_MAX);
    if (regions.length === 0) return undefined;
    const numbers = encodeHeat(regions.map(([region]) => region));
    return { type: "heat", disk: this.name, regionBytes, regions: numbers };
  }

  status(): SourceDiskStatus {
    const { underWay, held } = this.gate;
    const { name, sizeBytes } = this;
    return { name, sizeBytes, writesUnderWay: underWay, writesHeld: held, cleanBytes: this.clean.bytes };
  }

  async close(): Promise<void> {
    this.plain.revoke();
    this.endSessions();
    await Promise.all(this.#closing);
  }

  #end(kind: SessionKind): void {
    const session = this.#sessions.get(kind);
    if (session === undefined) return;
    this.#sessions.delete(kind);
    session.device.revoke();
    const closing = session.server.close().finally(() => this.#closing.delete(closing));
    this.#closing.add(closing);
  }
}
