/** Who goes first on a link that has more to send than it can, and how soon a dead line is noticed. */
import { expect } from "vitest";
import type { ByteSink } from "../../src/env/links.ts";
import type { Channel } from "../../src/link/channel.ts";
import type { LinkChaosPoint } from "../../src/link/chaos-points.ts";
import { itSeeded, type Prng } from "../support/seed.ts";
import { LinkWorld } from "./link-world.ts";

const KIB = 1024;
/** 10 MB/s, 1 ms, and a kernel that takes 64 KiB. */
const LINE = { latencyMs: 1, bytesPerMs: 10_000, windowBytes: 64 * KIB, shortPieces: 0.05 };
/**
 * What a demand read waits for: what the kernel and the stream hold, one run of frames, another one of the background if
 * that is due its share, and a round trip with its variation.
 */
const DEMAND_MS_MAX = (64 * KIB + 128 * KIB + 3 * 64 * KIB) / LINE.bytesPerMs + 2 * LINE.latencyMs * 1.25 + 1;

/** Counts, and ends nothing. */
class Counting implements ByteSink {
  bytes = 0;
  onMore: () => void = () => {};
  onBytes(bytes: Uint8Array): void {
    this.bytes += bytes.length;
    this.onMore();
  }
  onEnd(): void {}
  onClose(): void {}
  onDrain(): void {}
}

interface Flood {
  readonly at: LinkWorld;
  /** What has arrived at the destination, by label. */
  readonly arrived: Map<string, Counting>;
  /** The destination's end of a channel. */
  readonly ends: Map<string, Channel>;
}

async function connectedWorld(rng: Prng, mutants: readonly LinkChaosPoint[] = []): Promise<Flood> {
  const at = new LinkWorld(rng.integer(1, 1e9), { mutants });
  at.world.net.quality = LINE;
  const arrived = new Map<string, Counting>();
  const ends = new Map<string, Channel>();
  at.onChannel = (_side, channel) => {
    const sink = new Counting();
    arrived.set(channel.label, sink);
    ends.set(channel.label, channel);
    channel.attach(sink);
  };
  at.startSource();
  at.startDest();
  await at.world.scheduler.runFor(1000);
  expect(at.source.link.state).toBe("connected");
  return { at, arrived, ends };
}

/** The source never stops writing to `channel`. */
function flood(channel: Channel, writeBytes: number): void {
  const bytes = new Uint8Array(writeBytes).fill(1);
  const pour = (): void => {
    while (channel.pendingBytes < 256 * KIB) channel.write(bytes);
  };
  channel.attach({ onBytes: () => {}, onEnd: () => {}, onClose: () => {}, onDrain: pour });
  pour();
}

async function longestDemand(rng: Prng, mutants: readonly LinkChaosPoint[] = []): Promise<number> {
  const { at, arrived, ends } = await connectedWorld(rng, mutants);
  const { scheduler } = at.world;
  flood(at.source.link.open("background", "background"), 256 * KIB);
  const demand = at.source.link.open("demand", "demand");
  const answers = new Counting();
  demand.attach(answers);
  await scheduler.runFor(500);
  let longest = 0;
  for (let round = 0; round < 40; round++) {
    const before = arrived.get("demand")?.bytes ?? 0;
    const askedAtMs = scheduler.nowMs;
    demand.write(new Uint8Array(4096));
    while ((arrived.get("demand")?.bytes ?? 0) < before + 4096) {
      await scheduler.runFor(0.5);
      if (scheduler.nowMs > askedAtMs + 1000) return Infinity;
    }
    longest = Math.max(longest, scheduler.nowMs - askedAtMs);
    await scheduler.runFor(rng.float() * 30);
  }
  expect(ends.get("background")?.kind).toBe("background");
  return longest;
}

itSeeded("demand overtakes a saturated background: it waits for a bounded queue, no more", async (rng) => {
  const longest = await longestDemand(rng);
  console.info(`the slowest of 40 took ${longest.toFixed(1)} ms, of ${DEMAND_MS_MAX.toFixed(1)}`);
  expect(longest).toBeLessThan(DEMAND_MS_MAX);
});

itSeeded(
  "the bound on demand notices the mutant link/priority-inverted",
  async (rng) => {
    const longest = await longestDemand(rng, ["link/priority-inverted"]);
    expect(longest).toBeGreaterThan(DEMAND_MS_MAX);
  },
  60_000,
);

/** The background's share of what arrives while demand, tunnel and background are all flooded. */
async function backgroundShare(rng: Prng, mutants: readonly LinkChaosPoint[] = []): Promise<Map<string, number>> {
  const { at, arrived } = await connectedWorld(rng, mutants);
  for (const [kind, label, bytes] of [
    ["demand", "demand 1", 4 * KIB],
    ["demand", "demand 2", 300 * KIB],
    ["tunnel", "tunnel", 64 * KIB],
    ["background", "background 1", 256 * KIB],
    ["background", "background 2", 1 * KIB],
  ] as const) {
    flood(at.source.link.open(kind, label), bytes);
  }
  await at.world.scheduler.runFor(1000);
  const before = new Map([...arrived].map(([label, { bytes }]) => [label, bytes]));
  await at.world.scheduler.runFor(5000);
  const during = [...arrived].map(([label, { bytes }]): [string, number] => [label, bytes - (before.get(label) ?? 0)]);
  const total = during.reduce((sum, [, bytes]) => sum + bytes, 0);
  return new Map(during.map(([label, bytes]) => [label, bytes / total]));
}

itSeeded(
  "the background has a tenth at least, and channels of one kind share alike, whatever they write",
  async (rng) => {
    const shares = await backgroundShare(rng);
    const of = (label: string): number => shares.get(label) ?? 0;
    console.info([...shares].map(([label, share]) => `${label}: ${(100 * share).toFixed(1)} %`).join(", "));
    expect(of("background 1") + of("background 2")).toBeGreaterThanOrEqual(0.1);
    expect(of("background 1") + of("background 2")).toBeLessThan(0.15);
    expect(of("tunnel")).toBeLessThan(0.01);
    expect(of("demand 1") / of("demand 2")).toBeCloseTo(1, 1);
    expect(of("background 1") / of("background 2")).toBeCloseTo(1, 1);
  },
  60_000,
);

itSeeded(
  "the background's share notices the mutant link/background-starves",
  async (rng) => {
    const shares = await backgroundShare(rng, ["link/background-starves"]);
    expect((shares.get("background 1") ?? 0) + (shares.get("background 2") ?? 0)).toBeLessThan(0.1);
  },
  60_000,
);

/** What a reader that has stopped is sent all the same. */
async function keptBytes(rng: Prng, mutants: readonly LinkChaosPoint[] = []): Promise<number> {
  const { at, ends } = await connectedWorld(rng, mutants);
  const channel = at.source.link.open("tunnel", "tunnel");
  await at.world.scheduler.runFor(50);
  ends.get("tunnel")?.pause();
  let taken = 0;
  for (let round = 0; round < 60; round++) {
    const bytes = new Uint8Array(1024 * KIB);
    channel.write(bytes, () => {
      taken += bytes.length;
    });
    await at.world.scheduler.runFor(150);
  }
  return taken;
}

itSeeded(
  "a reader that does not read is sent two windows at most: one that it keeps, one that we do",
  async (rng) => {
    expect(await keptBytes(rng)).toBeLessThanOrEqual(2 * 8 * 1024 * KIB);
  },
  60_000,
);

itSeeded(
  "the bound on what is kept notices the mutant link/paused-reader-is-credited",
  async (rng) => {
    expect(await keptBytes(rng, ["link/paused-reader-is-credited"])).toBeGreaterThan(2 * 8 * 1024 * KIB);
  },
  60_000,
);

for (const [what, ends] of [
  ["a black hole", ["near", "far"]],
  ["a line that is dead towards the source", ["near"]],
  ["a line that is dead towards the destination", ["far"]],
] as const) {
  itSeeded(
    `${what} is noticed by both sides within 15 s, busy or idle, and the next connection takes over`,
    async (rng) => {
      for (const busy of [false, true]) {
        const { at } = await connectedWorld(rng);
        const { scheduler, net } = at.world;
        const channels = [at.source.link.open("background", "down"), at.dest.link.open("background", "up")];
        if (busy) for (const channel of channels) flood(channel, 64 * KIB);
        await scheduler.runFor(rng.float() * 5000);
        const [connection] = net.connections;
        for (const end of ends) connection?.[end].block();
        const blockedAtMs = scheduler.nowMs;
        const noticed = [at.source.link, at.dest.link].map(async (link) => {
          await link.whenDown();
          return scheduler.nowMs - blockedAtMs;
        });
        const took = await scheduler.complete(Promise.all(noticed));
        expect(Math.max(...took)).toBeLessThanOrEqual(15_000);
        await scheduler.runFor(6000);
        expect([at.source.link.state, at.dest.link.state]).toEqual(["connected", "connected"]);
      }
    },
  );
}
