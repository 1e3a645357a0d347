/** NBD sessions over channels, unchanged, in either direction, while the connections below them are cut. */
import { expect } from "vitest";
import { openRaw } from "../../src/image/raw.ts";
import type { Channel } from "../../src/link/channel.ts";
import type { NbdClient } from "../../src/nbd/client/client.ts";
import { openNbd } from "../../src/nbd/client/connect.ts";
import { NbdServer } from "../../src/nbd/server/server.ts";
import { counts, itSeeded } from "../support/seed.ts";
import { LinkWorld } from "./link-world.ts";
import { Oracle } from "./oracle.ts";
import { drawHabits, Guest } from "./workload.ts";

const PATH = "/vm/disk.raw";
const CELLS = 64;
const CELL_BYTES = 512;
const REQUESTS = 80;
const quiet = { debug: () => {}, info: () => {}, warn: () => {}, error: () => {} };

interface Outcome {
  readonly connections: number;
  readonly requests: number;
  /** A session was lost. (A zeroing that was to be fast may have been refused.) */
  readonly lost: boolean;
  readonly trace: string;
}

/** A guest works on a disk that is served over channels; connections are cut all the time; nobody notices. */
async function nbdHistory(seed: number): Promise<Outcome> {
  const at = new LinkWorld(seed);
  const { rng, scheduler, net } = at.world;
  const [server, client] = rng.shuffle(["source", "dest"] as const) as ["source" | "dest", "source" | "dest"];
  const oracle = new Oracle({ sizeBytes: CELLS * CELL_BYTES, cellBytes: CELL_BYTES });
  at.world.host(server).disk.add(PATH, oracle.baseContent());
  at.world.host(server).disk.behaviour.filesRemember = false;
  let cutting = true;
  net.onConnection = ({ near, far }) => {
    if (cutting && rng.chance(0.9)) rng.pick([near, far]).cutAfter(rng.integer(0, rng.pick([500, 5000, 50_000])));
  };
  at.startSource();
  at.startDest();
  const image = await scheduler.complete(openRaw(at[server].env, { path: PATH, readOnly: false }));
  const exports = [{ name: "vda", device: image, readOnly: false }];
  const limits = { handshakeTimeoutMs: 60_000 };
  const nbd = new NbdServer({ clock: at[server].env.clock, exports, limits, log: quiet });
  const accepted = Promise.withResolvers<Channel>();
  at.onChannel = (side, channel) => {
    if (side === server) nbd.accept(channel);
    else accepted.resolve(channel);
  };
  const devices: NbdClient[] = [];
  for (const kind of ["demand", "background"] as const) {
    // Whichever side opens a channel, the server serves on it.
    const byServer = kind === "demand" && rng.chance(0.5);
    const opened = at[byServer ? server : client].link.open(kind, "vda");
    if (byServer) nbd.accept(opened);
    const stream = byServer ? await scheduler.complete(accepted.promise) : opened;
    const options = { exportName: "vda", handshakeTimeoutMs: 60_000 };
    devices.push(await scheduler.complete(openNbd(stream, at[client].env.clock, options)));
  }
  const guest = new Guest({ oracle, rng, habits: drawHabits(rng, oracle.cells), lingers: false });
  await scheduler.complete(guest.run(devices, REQUESTS));
  const { connections } = at.dest.link.status();
  cutting = false;
  await scheduler.complete(Promise.all(devices.map((device) => device.close())));
  await scheduler.complete(nbd.close());
  await scheduler.complete(image.close());
  await at.close();
  expect(at.violations).toEqual([]);
  expect(devices.map(({ state }) => state)).toEqual(["closed", "closed"]);
  expect(nbd.heldBytes).toBe(0);
  return { connections, requests: guest.requests, lost: guest.lost, trace: scheduler.traceHash };
}

itSeeded(
  "a disk served over channels keeps every promise, and no session is lost, however often the connection is cut",
  async (rng) => {
    const first = rng.integer(1, 1e9);
    const timeMs = counts({ local: 1000, ci: 40_000 });
    const startedMs = performance.now();
    let [count, connections, requests] = [0, 0, 0];
    for (let seed = first; count < 10 || performance.now() - startedMs < timeMs; seed++) {
      const outcome = await nbdHistory(seed).catch((error: unknown) => {
        throw new Error(`history ${seed} failed: ${String(error)}`, { cause: error });
      });
      expect(outcome.lost, `history ${seed}`).toBe(false);
      count += 1;
      connections += outcome.connections;
      requests += outcome.requests;
      if (count % 10 === 0) await new Promise((resolve) => setImmediate(resolve));
    }
    console.info(`${count} histories from seed ${first}: ${requests} requests over ${connections} connections`);
    expect(connections).toBeGreaterThan(2 * count);
  },
);
