/** Records that cannot be written: whoever asked is told, nobody hangs, and everything goes on by itself once they can. */
import { expect } from "vitest";
import type { DestinationMigration } from "../../src/migrate/destination.ts";
import { MigrationError } from "../../src/migrate/errors.ts";
import type { SourceMigration } from "../../src/migrate/source.ts";
import { itSeeded, type Prng } from "../support/seed.ts";
import { quietLog } from "./link-world.ts";
import { MigrateWorld, type MigrateWorldOptions } from "./migrate-world.ts";

const LIMIT_MS = 60_000;
/** Several attempts. */
const WHILE_MS = 20_000;

interface Scene {
  readonly at: MigrateWorld;
  readonly source: SourceMigration;
  readonly dest: DestinationMigration;
}

async function ready(rng: Prng, options: MigrateWorldOptions = {}): Promise<Scene> {
  const at = new MigrateWorld(rng.integer(1, 1e9), { mode: "hybrid", ...options });
  const source = await at.scheduler.complete(at.startSource(), LIMIT_MS);
  const dest = await at.scheduler.complete(at.startDest(), LIMIT_MS);
  await at.scheduler.complete(source.whenPhase("ready"), LIMIT_MS);
  return { at, source, dest };
}

/** The destination has the disks, and cannot finish before it is told to. */
async function moved(rng: Prng, options?: MigrateWorldOptions): Promise<Scene> {
  const scene = await ready(rng, { mode: "postcopy", ...options });
  scene.dest.pause();
  await scene.at.scheduler.complete(scene.source.switchover(), LIMIT_MS);
  return scene;
}

async function refusalOf({ at }: Scene, work: Promise<void>): Promise<MigrationError> {
  const error = await at.scheduler.complete(
    work.then(
      () => undefined,
      (reason: unknown) => reason,
    ),
    LIMIT_MS,
  );
  if (!(error instanceof MigrationError)) throw new Error(`no refusal: ${String(error)}`);
  return error;
}

function full({ at }: Scene, side: "source" | "dest", path: string): void {
  Object.assign(at.world.host(side).disk.behaviour, { noSpace: 1, noSpaceAt: path });
}

function heal({ at }: Scene, side: "source" | "dest"): void {
  Object.assign(at.world.host(side).disk.behaviour, { noSpace: 0, syncError: 0 });
}

async function close({ at }: Scene): Promise<void> {
  await at.close();
  if (at.violation !== undefined) throw at.violation;
}

async function write({ at }: Scene, side: "source" | "dest"): Promise<void> {
  for (const disk of at.disks) {
    const guest = await at.guestOf(side, disk);
    await at.scheduler.complete(guest.write(0, new Uint8Array(512).fill(7)), LIMIT_MS);
  }
}

itSeeded("disks are not reclaimed from a destination that answers; once it does not, they are", async (rng) => {
  const scene = await moved(rng);
  const { at, source } = scene;
  const refused = await refusalOf(scene, source.reclaim());
  expect(refused).toMatchObject({ code: "phase", hint: expect.stringContaining("cancel") });
  expect(refused.message).toContain("connected");
  expect(at.violation).toBeUndefined();
  expect([source.phase, source.gate.state]).toEqual(["serving", "held"]);
  at.crash("dest", false);
  await at.scheduler.runFor(WHILE_MS);
  await at.scheduler.complete(source.reclaim(), LIMIT_MS);
  await write(scene, "source");
  await close(scene);
});

itSeeded("a cancel fails while the disks' return cannot be recorded, and they are back once it can", async (rng) => {
  const scene = await moved(rng, { disks: 2 });
  const { at, source, dest } = scene;
  at.world.host("source").disk.behaviour.syncError = 1;
  for (let round = 0; round < 2; round++) {
    const refused = await refusalOf(scene, source.cancel("a test"));
    expect(refused).toMatchObject({ code: "io", hint: expect.stringContaining("tried again") });
    expect([source.phase, dest.phase, source.gate.state]).toEqual(["serving", "returning", "held"]);
    await at.scheduler.runFor(WHILE_MS);
  }
  expect(source.status().lastError).toContain("tried again");
  heal(scene, "source");
  await at.scheduler.complete(dest.whenPhase("cancelled"), LIMIT_MS);
  expect(source.gate.state).toBe("open");
  await write(scene, "source");
  await close(scene);
});

itSeeded("a source whose disk is full releases its disks once there is room", async (rng) => {
  const scene = await moved(rng);
  const { at, source, dest } = scene;
  full(scene, "source", ".owner.new");
  dest.resume();
  await at.scheduler.complete(dest.whenPhase("hydrated"), LIMIT_MS);
  await at.scheduler.runFor(WHILE_MS);
  expect([source.phase, dest.phase]).toEqual(["serving", "hydrated"]);
  expect(source.status().lastError).toContain("tried again");
  heal(scene, "source");
  await at.scheduler.complete(dest.whenPhase("complete"), LIMIT_MS);
  expect(source.phase).toBe("released");
  await close(scene);
});

itSeeded("a destination whose disk is full completes once there is room", async (rng) => {
  const scene = await moved(rng);
  const { at, source, dest } = scene;
  full(scene, "dest", "destination.record.new");
  dest.resume();
  await at.scheduler.runFor(WHILE_MS);
  expect([source.phase, dest.phase]).toEqual(["serving", "active"]);
  expect(dest.status().lastError).toContain("tried again");
  await write(scene, "dest");
  heal(scene, "dest");
  await at.scheduler.complete(dest.whenPhase("complete"), LIMIT_MS);
  expect(source.phase).toBe("released");
  await close(scene);
});

itSeeded(
  "a cancel fails while the destination cannot record what it gives back, which comes once it can",
  async (rng) => {
    const scene = await moved(rng, { disks: 2 });
    const { at, source, dest } = scene;
    full(scene, "dest", "destination.record.new");
    for (let round = 0; round < 2; round++) {
      const refused = await refusalOf(scene, round === 0 ? source.cancel("a test") : dest.cancel("a test"));
      expect(refused).toMatchObject({ code: "peer", message: expect.stringContaining("cannot write down") });
      expect([source.phase, dest.phase, source.gate.state]).toEqual(["serving", "returning", "held"]);
      expect(dest.status()).toMatchObject({ owner: "destination", lastError: expect.stringContaining("tried again") });
      await at.scheduler.runFor(WHILE_MS);
    }
    // A new channel changes nothing of that.
    at.cut();
    await at.scheduler.runFor(WHILE_MS);
    expect([source.phase, dest.phase]).toEqual(["serving", "returning"]);
    heal(scene, "dest");
    await at.scheduler.complete(dest.whenPhase("cancelled"), LIMIT_MS);
    await write(scene, "source");
    await close(scene);
  },
);

itSeeded(
  "a destination that ends before it can record the return is asked again, and gives the disks back",
  async (rng) => {
    const scene = await ready(rng, { disks: 2, mode: "postcopy" });
    const { at, source } = scene;
    // Nobody completes what a guest may not arrive for.
    at.wayBack.take();
    await at.scheduler.complete(source.switchover(), LIMIT_MS);
    full(scene, "dest", "destination.record.new");
    expect(await refusalOf(scene, source.cancel("a test"))).toMatchObject({ code: "peer" });
    at.crash("dest", rng.chance(0.5));
    heal(scene, "dest");
    const dest = await at.scheduler.complete(at.startDest(), LIMIT_MS);
    expect(dest.status()).toMatchObject({ phase: "active", owner: "destination" });
    await at.scheduler.runFor(WHILE_MS);
    await at.scheduler.complete(source.cancel("a test"), LIMIT_MS);
    await at.scheduler.complete(dest.whenPhase("cancelled"), LIMIT_MS);
    await write(scene, "source");
    await close(scene);
  },
);

itSeeded("a destination whose guest has written keeps the disks, also when it was started again", async (rng) => {
  const scene = await ready(rng, { disks: 2, mode: "postcopy" });
  const { at, source } = scene;
  at.wayBack.take();
  await at.scheduler.complete(source.switchover(), LIMIT_MS);
  const [disk] = at.disks;
  if (disk === undefined) throw new Error("there is no disk");
  await at.scheduler.complete((await at.guestOf("dest", disk)).write(0, new Uint8Array(512).fill(7)), LIMIT_MS);
  at.crash("dest", rng.chance(0.5));
  const dest = await at.scheduler.complete(at.startDest(), LIMIT_MS);
  await at.scheduler.runFor(WHILE_MS);
  expect(await refusalOf(scene, source.cancel("a test"))).toMatchObject({ code: "written" });
  at.wayBack.letGo();
  await at.scheduler.complete(dest.whenPhase("complete"), LIMIT_MS);
  await close(scene);
});

itSeeded("disks that a full destination can neither take nor decline go back once there is room", async (rng) => {
  const scene = await ready(rng);
  const { at, source, dest } = scene;
  full(scene, "dest", "destination.record.new");
  const switching = refusalOf(scene, source.switchover());
  await at.scheduler.complete(dest.whenPhase("returning"), LIMIT_MS);
  await at.scheduler.runFor(WHILE_MS);
  expect([source.phase, dest.phase, source.gate.state]).toEqual(["granted", "returning", "held"]);
  expect(await refusalOf(scene, source.cancel("a test"))).toMatchObject({ code: "peer" });
  at.cut();
  await at.scheduler.runFor(WHILE_MS);
  heal(scene, "dest");
  expect(await switching).toMatchObject({ code: "cancelled" });
  await at.scheduler.complete(dest.whenPhase("cancelled"), LIMIT_MS);
  await write(scene, "source");
  await close(scene);
});

itSeeded("fences that were never meant are recorded over before there are new ones", async (rng) => {
  const scene = await ready(rng, { disks: 2 });
  const { at, source, dest } = scene;
  const before = source.term;
  full(scene, "source", "disk1.raw.owner.new");
  expect(await refusalOf(scene, source.switchover())).toMatchObject({ code: "io" });
  // Nothing was given away: the guest goes on.
  await write(scene, "source");
  await at.scheduler.complete(source.whenPhase("ready"), LIMIT_MS);
  expect(await refusalOf(scene, source.switchover())).toMatchObject({ code: "io" });
  expect(source.phase).toBe("ready");
  heal(scene, "source");
  await at.scheduler.runFor(WHILE_MS);
  expect(source.term).toBe(before + 2);
  await at.scheduler.complete(source.switchover(), LIMIT_MS);
  expect([source.term, dest.status().term]).toEqual([before + 3, before + 3]);
  await at.scheduler.complete(dest.whenPhase("complete"), LIMIT_MS);
  await close(scene);
});

itSeeded("a destination that ends says what of its guests' writes it could not make durable", async (rng) => {
  const warnings: string[] = [];
  const scene = await moved(rng, { log: { ...quietLog, warn: (message) => void warnings.push(message) } });
  await write(scene, "dest");
  scene.at.world.host("dest").disk.behaviour.syncError = 1;
  await scene.at.close();
  expect(warnings.some((line) => line.includes("may be lost"))).toBe(true);
});
