/** A clone on a simulated host: the real overlay, the real stream, and a process that is killed and begins again. */
import type { Overlay } from "../../src/cor/overlay.ts";
import { createOverlay, openOverlay } from "../../src/cor/overlay-files.ts";
import { createRawOverlay, openRawOverlay } from "../../src/image/raw-overlay.ts";
import type { GuestDevice } from "../../src/stream/guest-device.ts";
import type { Hydrator } from "../../src/stream/hydrator.ts";
import { nbdSource } from "../../src/stream/nbd-source.ts";
import { paceSources, startPull } from "../../src/stream/pull.ts";
import { ReconnectingSource } from "../../src/stream/reconnecting-source.ts";
import { identifySource } from "../../src/stream/source-identity.ts";
import { type SimEnv, SimWorld } from "./sim-env.ts";
import { drawContent, SOURCE_ADDRESS, SourceDisk, serve } from "./stream-source.ts";

const PATH = "/vm/disk.raw";
const CLUSTER_BYTES = 4096;
const UNIT_BYTES = 16_384;

export interface RunningClone {
  readonly env: SimEnv;
  readonly overlay: Overlay;
  /** The overlay, as the guest uses it. */
  readonly guest: GuestDevice;
  readonly demand: ReconnectingSource;
  readonly background: ReconnectingSource;
  readonly hydrator: Hydrator;
}

export class SimClone {
  readonly world: SimWorld;
  readonly disk: SourceDisk;
  readonly truth: Uint8Array;
  readonly #identity: string;
  #boot = 1;

  /** A source that serves, and an overlay that holds nothing. */
  static async begin(seed: number): Promise<SimClone> {
    const world = new SimWorld(seed);
    const { rng, scheduler } = world;
    const truth = drawContent(rng, rng.integer(20, 150) * CLUSTER_BYTES - rng.pick([0, 512]), 1);
    const disk = new SourceDisk(world, truth);
    serve(world.host("source"), disk);
    const identity = await scheduler.complete(identifySource(disk));
    const env = world.host("destination").start();
    const sizeBytes = truth.length;
    const createImage = (uuid: Uint8Array, begun: boolean): Promise<void> =>
      createRawOverlay(env, { path: PATH, sizeBytes, uuid, begun });
    await scheduler.complete(
      createOverlay(env, { path: PATH, sizeBytes, clusterBytes: CLUSTER_BYTES, sourceIdentity: identity, createImage }),
    );
    return new SimClone({ world, disk, truth, identity });
  }

  private constructor(parts: { world: SimWorld; disk: SourceDisk; truth: Uint8Array; identity: string }) {
    this.world = parts.world;
    this.disk = parts.disk;
    this.truth = parts.truth;
    this.#identity = parts.identity;
  }

  /** The process ends as if killed, or with its host; another one goes on where it was. */
  async crash(powerLoss: boolean): Promise<RunningClone> {
    const host = this.world.host("destination");
    if (powerLoss) this.#boot += 1;
    return await this.run(powerLoss ? host.powerLoss() : host.restart());
  }

  async run(env = this.world.host("destination").env): Promise<RunningClone> {
    const { scheduler } = this.world;
    const source = (): ReconnectingSource =>
      new ReconnectingSource({
        ...env,
        connect: nbdSource(env, { address: SOURCE_ADDRESS, exportName: "" }),
        expected: { sizeBytes: this.truth.length, identity: this.#identity },
        onLoss: "stall",
      });
    const [demand, background] = [source(), source()];
    const sources = paceSources(env, demand, background);
    const overlay = await scheduler.complete(
      openOverlay(env, {
        ...{ path: PATH, bootId: `boot ${this.#boot}`, fetchUnitBytes: UNIT_BYTES },
        ...{ backing: sources.demand, ahead: sources.ahead, background: sources.background },
        openStore: ({ sizeBytes, uuid, clusterBytes, state }) =>
          openRawOverlay(env, { path: PATH, sizeBytes, uuid, clusterBytes, state }),
      }),
    );
    const { guest, hydrator } = startPull(env, { target: overlay, sources });
    return { env, overlay, guest, demand, background, hydrator };
  }

  async close({ env, overlay, demand, hydrator }: RunningClone): Promise<void> {
    const { scheduler } = this.world;
    await scheduler.complete(hydrator[Symbol.asyncDispose](), 10_000);
    await scheduler.complete(demand.close(), 10_000);
    await scheduler.complete(overlay.close(), 10_000);
    await scheduler.runFor(1000);
    env.checkNothingLeft();
  }
}
