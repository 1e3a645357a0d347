/**
 * Space that a write had taken when the disk ran full, and had filled in part, is used again: whatever a crash keeps of what
 * followed, what that write left must not show in somebody else's cluster.
 */
import { expect } from "vitest";
import type { BlockDevice } from "../../src/block/device.ts";
import type { OverlayStore } from "../../src/block/overlay-store.ts";
import { chooseFormat } from "../../src/image/format.ts";
import { counts, itSeeded, type Prng } from "../support/seed.ts";
import { type SimHost, SimWorld } from "./sim-env.ts";

const CLUSTER_BYTES = 4096;
const SIZE_BYTES = 64 * CLUSTER_BYTES;
const CELL_BYTES = 512;
const UUID = new Uint8Array(16).fill(7);
const FAILED = 0xbb;
const WRITTEN = 0xcc;
/** Of many histories on a busy machine. */
const TIMEOUT_MS = 240_000;

interface Kind {
  readonly name: "qed" | "qcow2";
  readonly overlay: boolean;
  /** An overlay is completed before its space is used again. */
  readonly completes: boolean;
}

const KINDS: readonly Kind[] = (["qed", "qcow2"] as const).flatMap((name) => [
  { name, overlay: false, completes: false },
  { name, overlay: true, completes: false },
  { name, overlay: true, completes: true },
]);

interface Disk {
  readonly host: SimHost;
  create(): Promise<void>;
  open(): Promise<BlockDevice | OverlayStore>;
  /** Throws when the tables are wrong. */
  check(): Promise<void>;
}

function diskOf(world: SimWorld, { name, overlay }: Kind): Disk {
  const path = `/vm/disk.${name}`;
  const { format } = chooseFormat(path);
  const host = world.host("store");
  const run = <T>(work: Promise<T> | undefined): Promise<T> => {
    if (work === undefined) throw new Error(`${name} cannot do that`);
    return world.scheduler.complete(work);
  };
  const common = { path, sizeBytes: SIZE_BYTES };
  const store = { ...common, uuid: UUID, clusterBytes: CLUSTER_BYTES };
  return {
    host,
    create: () => {
      const env = host.start();
      if (!overlay) return run(format.create?.(env, { ...common, clusterBytes: CLUSTER_BYTES }));
      return run(format.overlay?.create(env, { ...store, imageClusterBytes: CLUSTER_BYTES, begun: false }));
    },
    // An overlay that stands alone is one that its map may call complete.
    open: () =>
      overlay
        ? run<BlockDevice>(format.overlay?.open(host.start(), { ...store, state: "complete" }))
        : run<BlockDevice>(format.open?.(host.start(), { path, readOnly: false })),
    check: async () => {
      const { corruptions, badEntries } = await run(format.check?.(host.start(), { path }));
      // A QED image by itself relies on NEED_CHECK: an entry may have reached the disk, and the file's length not.
      const allowed = name === "qed" && !overlay ? badEntries.length : 0;
      expect(corruptions).toBeLessThanOrEqual(allowed);
    },
  };
}

/** Resolves to the bytes of the failed write that show where it did not write. */
async function strayBytes(seed: number, kind: Kind): Promise<number> {
  const world = new SimWorld(seed);
  const { rng, scheduler } = world;
  const disk = diskOf(world, kind);
  await disk.create();
  const device = await disk.open();
  const behaviour = disk.host.disk.behaviour;
  const write = (cluster: number, length: number, byte: number): Promise<void> =>
    device.write(cluster * CLUSTER_BYTES, new Uint8Array(length).fill(byte));
  for (let cluster = 0; cluster < rng.integer(1, 8); cluster++) {
    await scheduler.complete(write(cluster, CELL_BYTES, WRITTEN));
  }
  await scheduler.complete(device.flush());
  behaviour.noSpace = 1;
  const failing = write(16, rng.integer(2, 8) * CLUSTER_BYTES, FAILED);
  await expect(scheduler.complete(failing)).rejects.toMatchObject({ code: "no-space" });
  behaviour.noSpace = 0;
  if (kind.completes && "complete" in device) await scheduler.complete(device.complete());
  await scheduler.complete(Promise.all(scattered(rng).map((cluster) => write(cluster, CELL_BYTES, WRITTEN))));
  const stray = await count(world, device);
  disk.host.losePower();
  await disk.check();
  const again = await disk.open();
  return stray + (await count(world, again));
}

/** Clusters that nothing was written to; those of the failed write are 16 to 23. */
function scattered(rng: Prng): number[] {
  const clusters = Array.from({ length: 32 }, (_, index) => 32 + index);
  return rng.shuffle(clusters).slice(0, rng.integer(2, 12));
}

async function count(world: SimWorld, device: BlockDevice): Promise<number> {
  const bytes = new Uint8Array(SIZE_BYTES);
  await world.scheduler.complete(device.read(0, bytes));
  bytes.fill(0, 16 * CLUSTER_BYTES, 24 * CLUSTER_BYTES);
  let found = 0;
  for (let at = bytes.indexOf(FAILED); at >= 0; at = bytes.indexOf(FAILED, at + 1)) found += 1;
  return found;
}

for (const kind of KINDS) {
  const { name, overlay, completes } = kind;
  const what = `${name} ${overlay ? "overlay" : "image"}${completes ? " that is completed meanwhile" : ""}`;
  const body = async (rng: Prng): Promise<void> => {
    const first = rng.integer(1, 1e9);
    for (let seed = first; seed < first + counts({ local: 50, ci: 1000 }); seed++) {
      expect({ seed, stray: await strayBytes(seed, kind) }).toEqual({ seed, stray: 0 });
    }
  };
  itSeeded(`what a write left that found no space shows nowhere else: a ${what}`, body, TIMEOUT_MS);
}
