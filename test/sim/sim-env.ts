/**
 * A world of hosts. A host has a disk, which stays, and at most one process, which may be killed (what it wrote is in the
 * page cache) or lose power with its host (then only the medium is left). Each process sees the world through its own
 * `SimEnv`.
 */
import type { Chaos } from "../../src/env/chaos.ts";
import type { Env } from "../../src/env/env.ts";
import type { Random } from "../../src/env/random.ts";
import { Prng } from "../support/seed.ts";
import { Scheduler, SimClock } from "./scheduler.ts";
import { drawBehaviour, SimDisk } from "./sim-disk.ts";
import { SimFiles } from "./sim-files.ts";
import { SimLinks, SimNet } from "./sim-net.ts";
import { SimProcess } from "./sim-process.ts";

export class SimLeakError extends Error {
  override readonly name = "SimLeakError";
}

/** An `Env`, and what tests may ask about it. */
export class SimEnv implements Env {
  readonly process: SimProcess;
  readonly clock: SimClock;
  readonly random: Random;
  readonly files: SimFiles;
  readonly links: SimLinks;
  readonly chaos: Chaos;

  constructor(world: SimWorld, process: SimProcess, parts: { disk: SimDisk; rng: Prng; chaos: ReadonlySet<string> }) {
    const { disk, rng, chaos } = parts;
    this.process = process;
    this.clock = new SimClock(world.scheduler, rng.float() * 1e6);
    this.random = { next: () => rng.float(), fill: (into) => rng.fill(into) };
    this.files = new SimFiles(disk, process);
    this.links = new SimLinks(world.net, process);
    this.chaos = { on: (point) => chaos.has(point) };
    process.onDeath(() => this.clock.stop());
  }

  /** To be called when everything has been closed. Throws `SimLeakError` when something of this process is left. */
  checkNothingLeft(): void {
    const { timers } = this.clock;
    const { openFiles } = this.files;
    if (timers > 0 || openFiles > 0) {
      throw new SimLeakError(`${this.process.name} has left ${timers} timers and ${openFiles} open files`);
    }
  }
}

export class SimHost {
  readonly name: string;
  readonly disk: SimDisk;
  /** Switches that every process started from now on finds turned on. */
  chaos: ReadonlySet<string> = new Set();
  readonly #world: SimWorld;
  #env: SimEnv | undefined;
  #starts = 0;

  constructor(world: SimWorld, name: string, rng: Prng) {
    this.name = name;
    this.disk = new SimDisk(world.scheduler, rng, drawBehaviour(rng));
    this.#world = world;
  }

  /** The process that runs. */
  get env(): SimEnv {
    if (this.#env === undefined) throw new Error(`nothing runs on ${this.name}`);
    return this.#env;
  }

  start(): SimEnv {
    this.#env?.process.die();
    const process = new SimProcess(`${this.name}#${++this.#starts}`);
    const rng = new Prng(this.#world.seed, process.name);
    this.#env = new SimEnv(this.#world, process, { disk: this.disk, rng, chaos: this.chaos });
    this.#world.scheduler.trace("start", this.#starts);
    return this.#env;
  }

  /** Kills the process: the page cache stays. Idempotent. */
  kill(): void {
    this.#world.scheduler.trace("kill", this.#starts);
    this.#env?.process.die();
    this.#env = undefined;
  }

  /** Same disk, new process. */
  restart(): SimEnv {
    this.kill();
    return this.start();
  }

  /** Kills the process, and the page cache is lost. */
  losePower(): void {
    this.kill();
    this.#world.scheduler.trace("power loss");
    this.disk.losePower();
  }

  /** Power loss, and a new process afterwards. */
  powerLoss(): SimEnv {
    this.losePower();
    return this.start();
  }
}

export class SimWorld {
  readonly seed: number;
  readonly scheduler: Scheduler;
  readonly net: SimNet;
  /** For whoever plays the history: the workload, and when what goes wrong. */
  readonly rng: Prng;
  readonly #hosts = new Map<string, SimHost>();

  constructor(seed: number) {
    this.seed = seed;
    this.scheduler = new Scheduler(new Prng(seed, "order"));
    this.net = new SimNet(this.scheduler, new Prng(seed, "net"));
    this.rng = new Prng(seed, "story");
  }

  /** The host of this name; it is there from the first time it is asked for. */
  host(name: string): SimHost {
    const known = this.#hosts.get(name);
    if (known !== undefined) return known;
    const host = new SimHost(this, name, new Prng(this.seed, `disk of ${name}`));
    this.#hosts.set(name, host);
    return host;
  }
}
