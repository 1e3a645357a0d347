import { expect } from "vitest";
import { counts, itSeeded, type Prng } from "../support/seed.ts";
import { SimClone } from "./stream-clone.ts";

async function each(rng: Prng, count: number, history: (seed: number) => Promise<void>): Promise<void> {
  const first = rng.integer(1, 1e9);
  const startedMs = performance.now();
  for (let seed = first; seed < first + count; seed++) {
    try {
      await history(seed);
    } catch (error) {
      throw new Error(`history ${seed} failed: ${String(error)}`, { cause: error });
    }
  }
  console.info(`${count} histories from seed ${first} in ${Math.round(performance.now() - startedMs)} ms`);
}

itSeeded(
  "a clone that is killed, or loses power, goes on by itself, and its image ends as the source's disk",
  async (rng) => {
    let crashes = 0;
    await each(rng, counts({ local: 20, ci: 400 }), async (seed) => {
      const clone = await SimClone.begin(seed);
      const { world, truth } = clone;
      let running = await clone.run();
      for (let rounds = world.rng.integer(0, 4); rounds > 0; rounds--) {
        await world.scheduler.runFor(world.rng.float() * world.rng.pick([5, 50, 1000]));
        running = await clone.crash(world.rng.chance(0.5));
        crashes += 1;
      }
      expect(await world.scheduler.complete(running.hydrator.whenDone())).toEqual({ state: "complete" });
      // The source is no longer needed: all of it is read without.
      world.host("source").kill();
      const bytes = Buffer.alloc(truth.length);
      await world.scheduler.complete(running.guest.read(0, bytes));
      expect(bytes.equals(truth)).toBe(true);
      await clone.close(running);
      const after = await clone.crash(true);
      expect(await world.scheduler.complete(after.hydrator.whenDone(), 1000)).toEqual({ state: "complete" });
      await world.scheduler.complete(after.overlay.read(0, bytes.fill(0)));
      expect(bytes.equals(truth)).toBe(true);
      await clone.close(after);
    });
    expect(crashes).toBeGreaterThan(10);
  },
);

itSeeded(
  "a link that swallows everything is noticed within 15 seconds, and the guest's read is answered by the next one",
  async (rng) => {
    await each(rng, counts({ local: 10, ci: 200 }), async (seed) => {
      const clone = await SimClone.begin(seed);
      const { world } = clone;
      // As slow as it may be, nothing but the silence should take seconds.
      world.net.quality = { latencyMs: 25, bytesPerMs: 1e5, windowBytes: 1 << 20, shortPieces: 0.05 };
      const running = await clone.run();
      running.hydrator.pause();
      await world.scheduler.runFor(3000);
      expect(running.demand.state).toBe("connected");
      for (const { near, far } of world.net.connections) world.rng.pick([near, far]).block();
      const into = Buffer.alloc(4096);
      const sentMs = world.scheduler.nowMs;
      await world.scheduler.complete(running.guest.read(8192, into));
      expect(world.scheduler.nowMs - sentMs).toBeLessThanOrEqual(15_000);
      expect(into.equals(Buffer.from(clone.truth.subarray(8192, 12_288)))).toBe(true);
      expect(running.demand.status().reconnects).toBe(1);
      await clone.close(running);
    });
  },
);

itSeeded("a guest's read does not wait for what is fetched in the background", async (rng) => {
  await each(rng, counts({ local: 10, ci: 200 }), async (seed) => {
    const clone = await SimClone.begin(seed);
    const { world } = clone;
    world.net.quality = { latencyMs: 5, bytesPerMs: 1000, windowBytes: 1 << 20, shortPieces: 0.05 };
    world.host("destination").disk.behaviour.tail = 0;
    const running = await clone.run();
    // Half a second's worth of background data is on its way.
    running.hydrator.setWindowBytes(1 << 19);
    await world.scheduler.runFor(world.rng.integer(150, 250));
    expect(running.demand.state).toBe("connected");
    const sentMs = world.scheduler.nowMs;
    // The disk takes up to 20 ms, the link 12 there and back, and 16 for a unit of 16 KiB.
    await world.scheduler.complete(running.guest.read(clone.truth.length - 4096, Buffer.alloc(4096)));
    expect(world.scheduler.nowMs - sentMs).toBeLessThan(100);
    await clone.close(running);
  });
});
