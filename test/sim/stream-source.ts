/** The far side of a simulated stream: a disk with bad blocks and a temper, and the NBD server that may go and come. */
import { BlockError } from "../../src/block/error.ts";
import { MemoryDevice } from "../../src/block/memory.ts";
import { NbdServer } from "../../src/nbd/server/server.ts";
import { pattern } from "../support/patterns.ts";
import type { Prng } from "../support/seed.ts";
import type { SimHost, SimWorld } from "./sim-env.ts";
import type { SampledRange } from "./stream-target.ts";

export const SOURCE_ADDRESS = { kind: "tcp", host: "source", port: 10_809 } as const;
const quiet = { debug: () => {}, info: () => {}, warn: () => {}, error: () => {} };
const SECTOR_BYTES = 512;

/** A read-only disk whose answers take their time, and some of whose sectors cannot be read. */
export class SourceDisk extends MemoryDevice {
  bad: SampledRange[] = [];
  readonly #world: SimWorld;
  readonly #slowMs: number;

  constructor(world: SimWorld, content: Uint8Array) {
    super({ sizeBytes: content.length, pageBytes: SECTOR_BYTES });
    this.#world = world;
    this.#slowMs = world.rng.pick([0, 1, 20]);
    for (let at = 0; at < content.length; at += SECTOR_BYTES) {
      const sector = content.subarray(at, at + SECTOR_BYTES);
      // Some zeroes are stored, most are holes.
      if (sector.some((byte) => byte !== 0) || world.rng.chance(0.1)) super.writeNow(at, sector);
    }
  }

  isBad(offset: number, length: number): boolean {
    return this.bad.some((range) => range.offset < offset + length && offset < range.offset + range.length);
  }

  override readNow(): number {
    return -1;
  }

  override async read(offset: number, into: Uint8Array): Promise<void> {
    const { scheduler, rng } = this.#world;
    await new Promise<void>((resolve) => void scheduler.after(rng.float() * this.#slowMs, "disk", resolve));
    if (this.isBad(offset, into.length)) throw new BlockError("io", "a bad sector");
    super.readNow(offset, into);
  }
}

/** Data and holes of any length, in whole sectors. Every word of data tells its own place and the salt. */
export function drawContent(rng: Prng, sizeBytes: number, salt: number): Uint8Array {
  const content = new Uint8Array(pattern(0, sizeBytes, salt));
  const sectors = sizeBytes / SECTOR_BYTES;
  const zeroes = rng.pick([0, 0.3, 0.8]);
  for (let at = 0; at < sectors; ) {
    const end = Math.min(sectors, at + rng.integer(1, rng.pick([3, 20, 100])));
    if (rng.chance(zeroes)) content.fill(0, at * SECTOR_BYTES, end * SECTOR_BYTES);
    at = end;
  }
  return content;
}

export function drawBad(rng: Prng, sizeBytes: number): SampledRange[] {
  return Array.from({ length: rng.integer(1, 3) }, () => {
    const offset = rng.integer(0, sizeBytes / SECTOR_BYTES - 1) * SECTOR_BYTES;
    return { offset, length: Math.min(rng.pick([SECTOR_BYTES, 9000]), sizeBytes - offset) };
  });
}

/** Serves `disk` from a new process of `host`; what served before is dead. */
export function serve(host: SimHost, disk: SourceDisk): void {
  const { clock, links } = host.restart();
  const server = new NbdServer({ clock, exports: [{ name: "", device: disk, readOnly: true }], log: quiet });
  links.listen(SOURCE_ADDRESS, (stream) => server.accept(stream));
}
