/**
 * The disk of a simulated host: names, files below them, faults. It outlives processes; what a process sees of it is
 * `SimFiles` (`sim-files.ts`). A name that was made, moved or removed is durable only after `syncDirectory`; until then power loss keeps or
 * loses each such change on its own (a rename keeps both of its halves, or neither).
 */
import { posix } from "node:path";
import type { FileFeatures } from "../../src/env/files.ts";
import type { Prng } from "../support/seed.ts";
import type { Scheduler } from "./scheduler.ts";
import { SimInode } from "./sim-inode.ts";

/** Chances per operation, and times. To be changed at will while a history runs. */
export interface DiskBehaviour {
  readError: number;
  writeError: number;
  noSpace: number;
  /** Only files whose path ends so run out of space; "" is all. */
  noSpaceAt: string;
  syncError: number;
  /** `readNow` and `writeNow` answer −1. */
  nowRefused: number;
  /** An operation takes `tailMs` rather than up to `latencyMs`. */
  tail: number;
  latencyMs: number;
  tailMs: number;
  /** The `File` promises that a failed sync is not forgotten. False: the kernel underneath, which does forget. */
  filesRemember: boolean;
  features: FileFeatures;
}

export function kindBehaviour(): DiskBehaviour {
  return {
    readError: 0,
    writeError: 0,
    noSpace: 0,
    noSpaceAt: "",
    syncError: 0,
    nowRefused: 0,
    tail: 0,
    latencyMs: 1,
    tailMs: 0,
    filesRemember: true,
    features: { readNow: true, punchHole: true, zeroRange: true, extents: true },
  };
}

/** Latencies, tails, refusals and features as the seed has it; no errors. */
export function drawBehaviour(rng: Prng): DiskBehaviour {
  return {
    ...kindBehaviour(),
    nowRefused: rng.pick([0, 0.1, 0.5, 1]),
    tail: rng.pick([0, 0, 0.05]),
    latencyMs: rng.pick([0.1, 1, 5]),
    tailMs: 200,
    features: {
      readNow: rng.chance(0.8),
      punchHole: rng.chance(0.8),
      zeroRange: rng.chance(0.8),
      extents: rng.chance(0.8),
    },
  };
}

/** `undefined`: the name is gone. */
type NameChange = ReadonlyMap<string, SimInode | undefined>;

export class SimDisk {
  readonly scheduler: Scheduler;
  readonly rng: Prng;
  behaviour: DiskBehaviour;
  /** Writes and syncs that failed with an I/O error. */
  ioErrors = 0;
  readonly #names = new Map<string, SimInode>();
  #durableNames = new Map<string, SimInode>();
  #pendingNames: NameChange[] = [];

  constructor(scheduler: Scheduler, rng: Prng, behaviour: DiskBehaviour = kindBehaviour()) {
    this.scheduler = scheduler;
    this.rng = rng;
    this.behaviour = behaviour;
  }

  /** Puts a file there, durable with its name. */
  add(path: string, content: Uint8Array | number, kind: SimInode["kind"] = "regular"): SimInode {
    const inode = new SimInode(kind);
    if (typeof content === "number") inode.truncate(content);
    else inode.write(0, content);
    inode.finishSync(inode.syncPoint());
    this.#names.set(path, inode);
    this.#durableNames.set(path, inode);
    return inode;
  }

  find(path: string): SimInode | undefined {
    return this.#names.get(path);
  }

  get paths(): string[] {
    return [...this.#names.keys()].sort();
  }

  /** How long the next operation takes. */
  latencyMs(): number {
    const { tail, tailMs, latencyMs } = this.behaviour;
    return this.rng.chance(tail) ? tailMs : this.rng.float() * latencyMs;
  }

  change(names: NameChange): void {
    this.#pendingNames.push(names);
    apply(names, this.#names);
  }

  /** Begins to make the names in `directory` durable; the function returned ends it. */
  beginDirectorySync(directory: string): () => void {
    const covered = this.#pendingNames.filter((names) =>
      [...names.keys()].some((path) => posix.dirname(path) === posix.resolve(directory)),
    );
    return () => {
      for (const names of covered) {
        // Another sync may have been quicker.
        if (!this.#pendingNames.includes(names)) continue;
        apply(names, this.#durableNames);
        this.#pendingNames = this.#pendingNames.filter((other) => other !== names);
      }
    };
  }

  /** Every file keeps what was durable, and of the rest what the seed says. */
  losePower(): void {
    for (const names of this.#pendingNames) if (this.rng.chance(0.5)) apply(names, this.#durableNames);
    this.#pendingNames = [];
    const inodes = new Set([...this.#names.values(), ...this.#durableNames.values()]);
    for (const inode of inodes) inode.losePower(this.rng);
    this.#names.clear();
    apply(this.#durableNames, this.#names);
  }
}

function apply(names: NameChange, to: Map<string, SimInode>): void {
  for (const [path, inode] of names) {
    if (inode === undefined) to.delete(path);
    else to.set(path, inode);
  }
}
