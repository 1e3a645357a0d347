/** Histories of a raw image: a guest works, something happens, the disk is opened again and must hold what it may hold. */
import type { BlockDevice } from "../../src/block/device.ts";
import type { File } from "../../src/env/files.ts";
import { openRaw, type RawImage } from "../../src/image/raw.ts";
import { openNbd } from "../../src/nbd/client/connect.ts";
import { NbdServer } from "../../src/nbd/server/server.ts";
import { Oracle } from "./oracle.ts";
import { type SimEnv, type SimHost, SimLeakError, SimWorld } from "./sim-env.ts";
import { drawHabits, Guest } from "./workload.ts";

const PATH = "/vm/disk.raw";
const CELLS = 24;
const REQUESTS_MAX = 60;
const ADDRESS = { kind: "tcp", host: "store", port: 10_809 } as const;
const quiet = { debug: () => {}, info: () => {}, warn: () => {}, error: () => {} };

/** Devices through which the guest's threads reach the image: for doubles that misbehave. */
export type Wrap = (image: RawImage, file: File) => readonly BlockDevice[];

export interface HistoryOptions {
  readonly wrap?: Wrap;
  readonly overNbd?: boolean;
}

export interface HistoryResult {
  readonly trace: string;
  readonly requests: number;
  readonly end: "close" | "process-kill" | "power-loss";
  readonly failures: number;
}

/** Rejects with `OracleError`, `SimHangError` or `SimLeakError`. */
export async function rawHistory(seed: number, options: HistoryOptions = {}): Promise<HistoryResult> {
  const world = new SimWorld(seed);
  const { rng, scheduler } = world;
  const host = world.host("store");
  const oracle = new Oracle({ sizeBytes: CELLS * 512, cellBytes: rng.pick([128, 512]) });
  host.disk.add(PATH, oracle.baseContent());
  host.disk.behaviour.filesRemember = false;
  if (rng.chance(0.2)) host.disk.behaviour.syncError = 0.2;
  if (rng.chance(0.1)) host.disk.behaviour.noSpace = 0.1;
  const guest = new Guest({
    oracle,
    rng,
    habits: drawHabits(rng, oracle.cells),
    lingers: options.overNbd ?? false,
  });
  const env = host.start();
  const image = await scheduler.complete(openRaw(env, { path: PATH, readOnly: false }));
  const end = rng.pick(["close", "process-kill", "power-loss", "power-loss"] as const);
  const limit = end === "close" ? Infinity : rng.float() * rng.pick([5, 50, 500]);
  const served = options.overNbd ? await serveOver(world, image) : undefined;
  const devices = served?.devices ??
    options.wrap?.(image, await scheduler.complete(host.env.files.open(opened))) ?? [image];
  const work = guest.run(devices, rng.integer(1, REQUESTS_MAX));
  if (limit === Infinity) await scheduler.complete(work);
  else await untilCrash(world, work, limit);
  if (end === "close" && !options.wrap) await closeAll({ world, env, image, served });
  await crashAndCheck(world, host, { oracle, end: end === "close" ? "process-kill" : end });
  return { trace: scheduler.traceHash, requests: guest.requests, end, failures: guest.failures };
}

const opened = { path: PATH, writable: true };

/** An oracle's complaint comes out here; the guest itself is left where it is. */
async function untilCrash(world: SimWorld, work: Promise<void>, limitMs: number): Promise<void> {
  let failure: unknown;
  work.catch((error: unknown) => {
    failure = error;
  });
  await world.scheduler.runFor(limitMs);
  if (failure instanceof Error) throw failure;
}

interface Served {
  readonly server: NbdServer;
  readonly client: SimEnv;
  readonly devices: readonly BlockDevice[];
}

async function serveOver(world: SimWorld, image: RawImage): Promise<Served> {
  const { scheduler, net, rng } = world;
  const { clock, links } = world.host("store").env;
  const server = new NbdServer({ clock, exports: [{ name: "", device: image, readOnly: false }], log: quiet });
  links.listen(ADDRESS, (stream) => server.accept(stream));
  const client = world.host("guest").start();
  const dialectMax = rng.pick(["simple", "structured", "extended"] as const);
  const devices: BlockDevice[] = [];
  for (let count = rng.integer(1, 2); count > 0; count--) {
    const stream = await scheduler.complete(client.links.dial(ADDRESS));
    devices.push(await scheduler.complete(openNbd(stream, client.clock, { exportName: "", dialectMax })));
  }
  if (rng.chance(0.2)) net.connections[0]?.near.cutAfter(rng.integer(500, 20_000));
  return { server, client, devices };
}

async function closeAll(open: {
  world: SimWorld;
  env: SimEnv;
  image: RawImage;
  served: Served | undefined;
}): Promise<void> {
  const { world, env, image, served } = open;
  const { scheduler } = world;
  if (served !== undefined) {
    await scheduler.complete(Promise.all(served.devices.map((device) => device.close())));
    // A flush that fails, after a sync error, is the expected answer.
    await scheduler.complete(served.server.close().catch(() => {}));
  }
  await scheduler.complete(image.close());
  await scheduler.idle();
  env.checkNothingLeft();
  const heldBytes = served?.server.heldBytes ?? 0;
  if (heldBytes > 0) throw new SimLeakError(`the server holds ${heldBytes} bytes`);
  served?.client.checkNothingLeft();
  if (world.net.connections.length > 0) throw new SimLeakError("a connection is still open");
}

async function crashAndCheck(
  world: SimWorld,
  host: SimHost,
  { oracle, end }: { oracle: Oracle; end: "process-kill" | "power-loss" },
): Promise<void> {
  if (end === "power-loss") host.losePower();
  else host.kill();
  Object.assign(host.disk.behaviour, { syncError: 0, noSpace: 0 });
  const image = await world.scheduler.complete(openRaw(host.start(), { path: PATH, readOnly: false }));
  const bytes = new Uint8Array(oracle.sizeBytes);
  await world.scheduler.complete(image.read(0, bytes));
  oracle.recover(end, bytes);
  await world.scheduler.complete(image.close());
}
