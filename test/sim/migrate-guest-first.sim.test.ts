/** What a destination does, and leaves for later, in the moment in which it takes the disks. */
import { expect, vi } from "vitest";
import type { SourceMigration } from "../../src/migrate/source.ts";
import { itSeeded, type Prng } from "../support/seed.ts";
import { MigrateWorld, type MigrateWorldOptions } from "./migrate-world.ts";

const LIMIT_MS = 60_000;
/** Less than what is left to the guest, and much more. */
const SOON_MS = 30;
const WHILE_MS = 20_000;

async function ready(rng: Prng, options: MigrateWorldOptions) {
  const at = new MigrateWorld(rng.integer(1, 1e9), options);
  const source = await at.scheduler.complete(at.startSource(), LIMIT_MS);
  const dest = await at.scheduler.complete(at.startDest(), LIMIT_MS);
  await at.scheduler.complete(source.whenPhase("ready"), LIMIT_MS);
  return { at, source, dest };
}

/** The sessions that pull, as the source has come to serve them from now on. */
function pulls(source: SourceMigration): () => number {
  const spies = source.disks.map((disk) => vi.spyOn(disk, "serve"));
  return () => spies.flatMap(({ mock }) => mock.calls).filter(([kind]) => kind === "pull").length;
}

itSeeded("a guest that has just come is served before anything is fetched in the background", async (rng) => {
  const { at, source, dest } = await ready(rng, { mode: "postcopy", disks: 2 });
  const pulled = pulls(source);
  const switching = source.switchover();
  await at.scheduler.complete(dest.whenPhase("active"), LIMIT_MS);
  await at.scheduler.runFor(SOON_MS);
  expect(pulled()).toBe(0);
  const [disk] = at.disks;
  if (disk === undefined) throw new Error("there is no disk");
  const guest = await at.guestOf("dest", disk);
  await at.scheduler.complete(guest.read(0, new Uint8Array(512)), LIMIT_MS);
  await at.scheduler.complete(switching, LIMIT_MS);
  await at.scheduler.complete(dest.whenPhase("complete"), LIMIT_MS);
  expect(pulled()).toBe(2);
  await at.close();
});

itSeeded("a destination can be closed, and asked for the disks, before it has begun to fetch", async (rng) => {
  const { at, source, dest } = await ready(rng, { mode: "hybrid", disks: 2 });
  const switching = source.switchover();
  await at.scheduler.complete(dest.whenPhase("active"), LIMIT_MS);
  if (rng.chance(0.5)) {
    await at.scheduler.complete(switching, LIMIT_MS);
    await at.scheduler.complete(source.cancel("a test"), LIMIT_MS);
    await at.scheduler.complete(dest.whenPhase("cancelled"), LIMIT_MS);
  } else {
    await at.scheduler.complete(dest.close(), LIMIT_MS);
    await at.scheduler.complete(switching, LIMIT_MS);
  }
  await at.close();
});

itSeeded("sessions of a round that ended without its disks do not come between those of the next one", async (rng) => {
  const { at, source, dest } = await ready(rng, { mode: "hybrid" });
  // It can neither take the disks nor decline them.
  const { behaviour } = at.world.host("dest").disk;
  Object.assign(behaviour, { noSpace: 1, noSpaceAt: "destination.record.new" });
  const switching = source.switchover().catch(() => undefined);
  await at.scheduler.complete(dest.whenPhase("returning"), LIMIT_MS);
  const pulled = pulls(source);
  at.cut();
  await at.scheduler.runFor(WHILE_MS);
  // Of the new round, if it gets that far.
  expect(pulled()).toBeLessThanOrEqual(1);
  Object.assign(behaviour, { noSpace: 0 });
  await at.scheduler.complete(switching, LIMIT_MS);
  await at.scheduler.complete(dest.whenPhase("cancelled"), LIMIT_MS);
  await at.close();
});
