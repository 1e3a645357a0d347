/** A switchover that whoever asked for it may still call off, once all is held. */
import { expect } from "vitest";
import { itSeeded } from "../support/seed.ts";
import { MigrateWorld } from "./migrate-world.ts";

const LIMIT_MS = 60_000;

itSeeded(
  "a switchover that is not confirmed gives nothing away: what was held goes on, and the next one works",
  async (rng) => {
    const at = new MigrateWorld(rng.integer(1, 1e9), { mode: "hybrid", disks: 2 });
    const source = await at.scheduler.complete(at.startSource(), LIMIT_MS);
    const dest = await at.scheduler.complete(at.startDest(), LIMIT_MS);
    await at.scheduler.complete(source.whenPhase("ready"), LIMIT_MS);
    const [disk] = at.disks;
    if (disk === undefined) throw new Error("there is no disk");
    const guest = await at.guestOf("source", disk);
    const { term } = source;
    let held: Promise<void> | undefined;
    const confirm = async (): Promise<void> => {
      expect([source.phase, source.gate.state]).toEqual(["frozen", "held"]);
      held = guest.write(0, new Uint8Array(512).fill(7));
      expect(source.gate.held).toBe(1);
      throw new Error("somebody writes");
    };
    const outcome = source.switchover({ confirm }).then(
      () => undefined,
      (error: unknown) => error,
    );
    expect(await at.scheduler.complete(outcome, LIMIT_MS)).toMatchObject({ message: "somebody writes" });
    await at.scheduler.complete(held ?? Promise.reject(new Error("nothing was held")), LIMIT_MS);
    expect([source.term, source.gate.state]).toEqual([term, "open"]);
    await at.scheduler.complete(source.whenPhase("ready"), LIMIT_MS);
    let asked = 0;
    const agree = async (): Promise<void> => {
      asked += 1;
    };
    await at.scheduler.complete(source.switchover({ confirm: agree }), LIMIT_MS);
    expect([asked, source.term]).toEqual([1, term + 1]);
    await at.scheduler.complete(dest.whenPhase("complete"), LIMIT_MS);
    await at.close();
    if (at.violation !== undefined) throw at.violation;
  },
);
