/**
 * Two hosts and a migration between them: production's own classes, on simulated disks and a simulated network. Each side
 * is a process that can be killed, lose power with its host, and be started anew.
 */
import type { BlockDevice } from "../../src/block/device.ts";
import type { Env } from "../../src/env/env.ts";
import type { ByteStream } from "../../src/env/links.ts";
import { openRaw, type RawImage } from "../../src/image/raw.ts";
import { createRawOverlay, openRawOverlay } from "../../src/image/raw-overlay.ts";
import { dialLink } from "../../src/link/upgrade.ts";
import type { MigrateChaosPoint } from "../../src/migrate/chaos-points.ts";
import { DestinationMigration } from "../../src/migrate/destination.ts";
import type { DestinationDisk } from "../../src/migrate/destination-options.ts";
import type { Mode } from "../../src/migrate/messages.ts";
import { SourceMigration } from "../../src/migrate/source.ts";
import { NbdServer } from "../../src/nbd/server/server.ts";
import type { ServerLog } from "../../src/nbd/server/server-log.ts";
import { quietLog } from "./link-world.ts";
import { Steps, stepping, steppingStream } from "./migrate-steps.ts";
import { Oracle, OracleError } from "./oracle.ts";
import { kindBehaviour } from "./sim-disk.ts";
import { type SimEnv, type SimHost, SimWorld } from "./sim-env.ts";

const ADDRESS = { kind: "tcp", host: "source", port: 7000 } as const;
const CELL_BYTES = 512;
const GRAIN_BYTES = 4096;

export interface MigrateWorldOptions {
  readonly mutants?: readonly MigrateChaosPoint[];
  readonly mode?: Mode;
  readonly disks?: number;
  readonly grains?: number;
  /** Of the disks. */
  readonly latencyMs?: number;
  /** Of reads and writes, how many have to wait for the disk. */
  readonly nowRefused?: number;
  /** The destination's. */
  readonly log?: ServerLog;
  /** Of each guest; otherwise the seed has it. */
  readonly requests?: number;
  /** What either side sends are steps as well. */
  readonly countsSends?: boolean;
}

interface SourceSide {
  readonly env: SimEnv;
  readonly migration: SourceMigration;
  readonly images: readonly RawImage[];
  readonly port: NbdServer;
}

interface DestSide {
  readonly env: SimEnv;
  readonly migration: DestinationMigration;
}

export interface SimDiskInfo {
  readonly name: string;
  readonly oracle: Oracle;
  readonly sourcePath: string;
  readonly destPath: string;
}

/** Whoever waits goes on when it is let go. */
class Hold {
  #held: PromiseWithResolvers<void> | undefined;

  take(): void {
    this.#held ??= Promise.withResolvers<void>();
  }

  letGo(): void {
    this.#held?.resolve();
    this.#held = undefined;
  }

  async released(): Promise<void> {
    await this.#held?.promise;
  }
}

export class MigrateWorld {
  readonly world: SimWorld;
  readonly disks: readonly SimDiskInfo[];
  readonly steps = new Steps();
  readonly clusterBytes: number;
  readonly requests: number;
  mode: Mode;
  source: SourceSide | undefined;
  dest: DestSide | undefined;
  /** The source's disks may have lost what no flush had covered. */
  sourceLostPower = false;
  destLostPower = false;
  /** A guest that may not arrive keeps the way back open: while it does, disks do not become complete. */
  readonly wayBack = new Hold();
  /** What must never be, and was. */
  violation: Error | undefined;
  readonly #log: ServerLog;
  readonly #countsSends: boolean;
  #destDirectory = 1;
  #boots = 1;

  constructor(
    seed: number,
    {
      mutants = [],
      mode,
      disks = 1,
      grains = 12,
      latencyMs,
      nowRefused,
      requests,
      countsSends = false,
      log = quietLog,
    }: MigrateWorldOptions = {},
  ) {
    this.world = new SimWorld(seed);
    this.#log = log;
    this.#countsSends = countsSends;
    this.requests = requests ?? this.world.rng.pick([10, 40, 150]);
    const { rng, net } = this.world;
    this.mode = mode ?? rng.pick(["hybrid", "hybrid", "precopy", "postcopy"]);
    this.clusterBytes = rng.pick([512, 4096]);
    net.quality = { latencyMs: rng.pick([0.1, 0.5, 5]), bytesPerMs: 1e5, windowBytes: 1 << 20, shortPieces: 0.05 };
    this.steps.later = (delayMs, act) => void this.world.scheduler.after(delayMs, "later", act);
    this.steps.onStep = () => this.checkOwners();
    for (const name of ["source", "dest"]) {
      const host = this.#host(name);
      host.chaos = new Set(mutants);
      host.disk.behaviour = {
        ...kindBehaviour(),
        nowRefused: nowRefused ?? rng.pick([0, 0.5, 1]),
        latencyMs: latencyMs ?? rng.pick([0.1, 1]),
      };
      host.disk.behaviour.filesRemember = false;
    }
    this.disks = Array.from({ length: disks }, (_, index) => {
      const zeroes = new Set([rng.integer(0, grains - 1), rng.integer(0, grains - 1)]);
      const oracle = new Oracle({
        sizeBytes: grains * GRAIN_BYTES - rng.pick([0, 1024]),
        cellBytes: CELL_BYTES,
        zeroAtFirst: (cell) => zeroes.has(Math.floor((cell * CELL_BYTES) / GRAIN_BYTES)),
      });
      const sourcePath = `/vm/disk${index}.raw`;
      this.#host("source").disk.add(sourcePath, oracle.baseContent());
      return { name: `vd${"abcd"[index]}`, oracle, sourcePath, destPath: `/new/disk${index}.raw` };
    });
  }

  get scheduler(): SimWorld["scheduler"] {
    return this.world.scheduler;
  }

  /** Never two: whoever lets guests write is the only one. Noted, since whoever is at work would swallow an error. */
  checkOwners(): void {
    const here = this.source?.env.process.alive === true && this.source.migration.gate.state === "open";
    if (here && this.destOwns) this.violation ??= new OracleError("both sides let their guests write");
  }

  get destOwns(): boolean {
    if (this.dest?.env.process.alive !== true) return false;
    return ["active", "hydrated", "complete"].includes(this.dest.migration.phase);
  }

  get sourceOwns(): boolean {
    return this.source?.env.process.alive === true && this.source.migration.gate.state === "open";
  }

  async startSource(): Promise<SourceMigration> {
    const env = this.#host("source").start();
    const stepped = stepping(env, this.steps);
    const images = await Promise.all(
      this.disks.map(({ sourcePath }) => openRaw(stepped, { path: sourcePath, readOnly: false })),
    );
    const migration = await SourceMigration.open({
      env: stepped,
      disks: this.disks.map(({ name, sourcePath }, index) => ({
        ...{ name, image: sourcePath, device: images[index] as RawImage },
      })),
      stateDirectory: "/state",
      limits: { grainBytes: GRAIN_BYTES },
      log: quietLog,
    });
    const exports = migration.exports.map(({ name, plain }) => ({ name, device: plain, readOnly: true }));
    const port = new NbdServer({ clock: env.clock, exports, upgrade: migration.upgrade, log: quietLog });
    env.links.listen(ADDRESS, (stream: ByteStream) => port.accept(this.#counted(stream, env)));
    this.source = { env, migration, images, port };
    this.checkOwners();
    return migration;
  }

  async startDest(): Promise<DestinationMigration> {
    const env = this.#host("dest").start();
    const stepped = stepping(env, this.steps);
    const migration = await DestinationMigration.open({
      env: stepped,
      disks: this.disks.map((disk): DestinationDisk => {
        const path = disk.destPath;
        return {
          ...{ name: disk.name, image: path, clusterBytes: this.clusterBytes },
          format: {
            create: (image) => createRawOverlay(stepped, { path, ...image }),
            open: (image) => openRawOverlay(stepped, { path, ...image }),
          },
        };
      }),
      ...{ stateDirectory: `/state${this.#destDirectory}`, mode: this.mode, earlyReads: "passthrough" },
      ...{ onSourceLoss: "stall", bootId: `boot ${this.#boots}`, log: this.#log, tailBytesMax: 2 * GRAIN_BYTES },
      mayComplete: () => this.wayBack.released(),
      connect: (signal) => dialLink(this.#dialling(env), { address: ADDRESS, tls: { mode: "off" }, signal }),
    });
    this.dest = { env, migration };
    this.checkOwners();
    return migration;
  }

  /** The next destination is another one. */
  newDestination(): void {
    this.#destDirectory += 1;
  }

  crash(side: "source" | "dest", power: boolean): void {
    const host = this.#host(side);
    if (power) host.losePower();
    else host.kill();
    if (power && side === "dest") this.#boots += 1;
    if (power && side === "dest") this.destLostPower = true;
    if (power && side === "source") this.sourceLostPower = true;
    if (side === "source") this.source = undefined;
    else this.dest = undefined;
  }

  cut(): void {
    for (const { near } of this.world.net.connections) near.cut();
  }

  guestOf(side: "source" | "dest", disk: SimDiskInfo): Promise<BlockDevice> {
    if (side === "source") {
      const found = this.source?.migration.exports.find(({ name }) => name === disk.name)?.guest;
      return found === undefined ? Promise.reject(new Error("the source does not run")) : Promise.resolve(found);
    }
    const exports = this.dest?.migration.exports() ?? Promise.reject(new Error("the destination does not run"));
    return exports.then((list) => {
      const found = list.find(({ name }) => name === disk.name)?.guest;
      if (found === undefined) throw new Error("there is no such disk");
      return found;
    });
  }

  /** Both sides that run end in order; nothing of them is left. */
  async close(): Promise<void> {
    const { scheduler } = this;
    const { source, dest } = this;
    if (dest !== undefined) await scheduler.complete(dest.migration.close());
    if (source !== undefined) {
      await scheduler.complete(source.migration.close());
      await scheduler.complete(source.port.close());
      await scheduler.complete(Promise.all(source.images.map((image) => image.close())));
    }
    await scheduler.idle();
    dest?.env.checkNothingLeft();
    source?.env.checkNothingLeft();
  }

  paths(side: "source" | "dest"): string[] {
    return this.#host(side).disk.paths;
  }

  #counted(stream: ByteStream, env: SimEnv): ByteStream {
    return this.#countsSends ? steppingStream(stream, env, this.steps) : stream;
  }

  #dialling(env: SimEnv): Pick<Env, "clock" | "links" | "random"> {
    const { clock, random, links } = env;
    return {
      ...{ clock, random },
      links: { dial: async (address, signal) => this.#counted(await links.dial(address, signal), env) },
    };
  }

  #host(name: string): SimHost {
    return this.world.host(name);
  }
}
