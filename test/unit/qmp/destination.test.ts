import { expect, test } from "vitest";
import { type DestinationOutcome, type GateResult, runDestination } from "../../../src/qmp/destination.ts";
import { POLL_MS } from "../../../src/qmp/limits.ts";
import { FakeQemu, refused, settle } from "./fake-qemu.ts";

const START: GateResult = { kind: "start", guestWasRunning: true };

class Rig {
  readonly qemu = new FakeQemu();
  readonly gate = Promise.withResolvers<GateResult>();
  asked = 0;
  readonly outcome: Promise<DestinationOutcome>;

  constructor(guest: string, incomingUri?: string, migration: object = {}) {
    this.qemu.guest = guest;
    this.qemu.migration = { ...migration };
    const mayStart = (): Promise<GateResult> => {
      this.asked += 1;
      return this.gate.promise;
    };
    this.outcome = this.qemu
      .connect()
      .then((client) =>
        runDestination({ client, gate: { mayStart }, ...(incomingUri !== undefined && { incomingUri }) }),
      );
    this.outcome.catch(() => undefined);
  }

  async memoryArrives(): Promise<void> {
    await settle();
    this.qemu.migrate("active");
    await settle();
    this.qemu.guest = "paused";
    this.qemu.migrate("completed");
    await settle();
  }
}

test("a guest whose memory has arrived stands still until it may start", async () => {
  const rig = new Rig("inmigrate");
  await settle();
  expect(rig.asked).toBe(0);
  await rig.memoryArrives();
  expect(rig.asked).toBe(1);
  expect(rig.qemu.done).not.toContain("cont");
  rig.gate.resolve(START);
  expect(await rig.outcome).toMatchObject({ kind: "started", guest: { running: true } });
  expect(rig.qemu.done.at(-1)).toBe("cont");
  expect(rig.qemu.clock.timers).toBe(0);
});

test("a guest that comes in does not run by itself, however its QEMU was started", async () => {
  const rig = new Rig("inmigrate", "unix:/x");
  await settle();
  expect(rig.qemu.autostart).toBe(false);
  expect(rig.qemu.done.indexOf("stop")).toBeLessThan(rig.qemu.done.indexOf("migrate-incoming"));
  await rig.memoryArrives();
  rig.gate.resolve(START);
  expect(await rig.outcome).toMatchObject({ kind: "started", guest: { running: true } });
});

test("a guest that was paused on the source stays paused", async () => {
  const rig = new Rig("inmigrate");
  await rig.memoryArrives();
  rig.gate.resolve({ kind: "start", guestWasRunning: false });
  expect(await rig.outcome).toMatchObject({ kind: "started", guest: { running: false, status: "paused" } });
  expect(rig.qemu.done).not.toContain("cont");
});

test("a guest that is not to run here is not left where somebody might continue it", async () => {
  const rig = new Rig("inmigrate");
  await rig.memoryArrives();
  const reason = new Error("the source's migration failed");
  rig.gate.resolve({ kind: "abandon", reason });
  expect(await rig.outcome).toEqual({ kind: "abandoned", reason });
  expect(rig.qemu.done.at(-1)).toBe("quit");
  expect(rig.qemu.done).not.toContain("cont");
});

test("a QEMU that dies while memory comes in has failed, and so has one that says so", async () => {
  const dying = new Rig("inmigrate");
  await settle();
  dying.qemu.die();
  expect(await dying.outcome).toMatchObject({ kind: "failed", reason: { code: "closed" } });
  const failing = new Rig("inmigrate");
  await settle();
  failing.qemu.migrate("failed", { "error-desc": "load of migration failed" });
  const outcome = await failing.outcome;
  expect(outcome).toMatchObject({ kind: "failed" });
  expect((outcome as { reason: Error }).reason.message).toContain("load of migration failed");
  expect(failing.asked).toBe(0);
});

test("a gate that does not know leaves the guest standing", async () => {
  const rig = new Rig("inmigrate");
  await rig.memoryArrives();
  rig.gate.reject(new Error("the link is gone"));
  await expect(rig.outcome).rejects.toThrow("the link is gone");
  expect(rig.qemu.done).not.toContain("cont");
  expect(rig.qemu.done).not.toContain("quit");
});

test("a QEMU that waits to be told where to listen is told", async () => {
  const rig = new Rig("inmigrate", "unix:/run/vm.in");
  await settle();
  expect(rig.qemu.argumentsOf("migrate-incoming")).toEqual({ uri: "unix:/run/vm.in" });
});

test("whoever is restarted finds the memory here already, or the guest running", async () => {
  const arrived = new Rig("paused", undefined, { status: "completed" });
  arrived.gate.resolve(START);
  expect(await arrived.outcome).toMatchObject({ kind: "started", guest: { running: true } });
  const running = new Rig("running", undefined, { status: "completed" });
  expect(await running.outcome).toMatchObject({ kind: "started" });
  expect(running.asked).toBe(0);
  expect(running.qemu.done).not.toContain("cont");
});

test("a QEMU that was not started for an incoming guest is refused", async () => {
  const rig = new Rig("prelaunch");
  await expect(rig.outcome).rejects.toMatchObject({ code: "state" });
  expect(rig.asked).toBe(0);
});

test("a QEMU that does not set events on while it waits is asked how it is going", async () => {
  const rig = new Rig("inmigrate");
  rig.qemu.on("migrate-set-capabilities", () => refused("There's a migration process in progress"));
  await rig.memoryArrives();
  expect(rig.asked).toBe(0);
  rig.qemu.clock.advance(POLL_MS);
  await settle();
  expect(rig.asked).toBe(1);
});

test("a refused cont is the caller's to know", async () => {
  const rig = new Rig("inmigrate");
  rig.qemu.on("cont", () => refused("Failed to get write lock"));
  await rig.memoryArrives();
  rig.gate.resolve(START);
  await expect(rig.outcome).rejects.toMatchObject({ desc: "Failed to get write lock" });
});
