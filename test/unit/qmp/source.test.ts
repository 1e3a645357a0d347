import { expect, test } from "vitest";
import { QmpCommandError } from "../../../src/qmp/errors.ts";
import { POLL_MS, RESUME_TIMEOUT_MS, URGENT_POLL_MS } from "../../../src/qmp/limits.ts";
import { OK, refused, settle } from "./fake-qemu.ts";
import { GIVEN, Rig, URI } from "./source-rig.ts";

test("the disks are handed over while QEMU waits, and only then does it go on", async () => {
  const rig = await Rig.start();
  const { outcome } = await rig.begin();
  expect(rig.handOvers).toBe(0);
  rig.qemu.setGuest("finish-migrate");
  rig.qemu.migrate("pre-switchover");
  await settle();
  expect(rig.handOvers).toBe(1);
  rig.qemu.clock.advance(50);
  expect(rig.qemu.done).not.toContain("migrate-continue");
  rig.handedOver.resolve(GIVEN);
  await settle();
  expect(rig.qemu.argumentsOf("migrate-continue")).toEqual({ state: "pre-switchover" });
  rig.qemu.migrate("device");
  await settle();
  rig.qemu.clock.advance(7);
  rig.qemu.migrate("completed");
  const ended = await outcome;
  expect(ended).toMatchObject({ kind: "completed", guestWasRunning: true });
  expect(ended.times).toEqual({ startedMs: 1000, stoppedMs: 1000, pausedMs: 1000, givenMs: 1050, endedMs: 1057 });
  expect(rig.phases).toEqual(["preparing", "moving-memory", "handing-over", "finishing", "ended"]);
  expect(rig.qemu.clock.timers).toBe(0);
});

test("QEMU is set up before it migrates: pause, events and return path on, multifd off, all the bandwidth", async () => {
  const rig = await Rig.start();
  await rig.begin();
  expect(rig.qemu.done).toEqual(["qmp_capabilities", "migrate-set-capabilities", "migrate-set-parameters", "migrate"]);
  expect(Object.fromEntries(rig.qemu.capabilities)).toEqual({
    events: true,
    "pause-before-switchover": true,
    "return-path": true,
    multifd: false,
    "postcopy-ram": false,
    "auto-converge": true,
  });
  expect(rig.qemu.parameters).toMatchObject({ "max-bandwidth": 2 ** 40, "downtime-limit": 100 });
  expect(rig.qemu.argumentsOf("migrate")).toEqual({ uri: URI });
});

test("a guest that was paused arrives paused", async () => {
  const rig = await Rig.start();
  rig.qemu.guest = "paused";
  rig.handedOver.resolve(GIVEN);
  const { outcome } = await rig.begin();
  rig.qemu.migrate("pre-switchover");
  await settle();
  rig.qemu.migrate("completed");
  expect(await outcome).toMatchObject({ kind: "completed", guestWasRunning: false });
});

test("when the disks are kept, QEMU's migration is cancelled, the guest runs on, and settings are as before", async () => {
  const rig = await Rig.start();
  const before = [...rig.qemu.capabilities];
  const { outcome } = await rig.beginHandOver();
  const reason = new Error("the destination's disk is full");
  rig.handedOver.resolve({ kind: "kept", reason });
  await settle();
  expect(rig.qemu.done.at(-1)).toBe("migrate_cancel");
  await rig.guestResumes("cancelled");
  expect(await outcome).toMatchObject({ kind: "kept", reason, guest: { running: true } });
  expect(rig.qemu.done).not.toContain("migrate-continue");
  expect([...rig.qemu.capabilities]).toEqual(before);
  expect(rig.qemu.parameters).toMatchObject({ "max-bandwidth": 134_217_728, "downtime-limit": 300 });
  expect(rig.qemu.clock.timers).toBe(0);
});

test("memory that does not get there keeps the disks, with QEMU's reason", async () => {
  const rig = await Rig.start();
  const { outcome } = await rig.begin();
  rig.qemu.migrate("failed", { "error-desc": "Unable to write to socket: Broken pipe" });
  const ended = await outcome;
  expect(ended).toMatchObject({ kind: "kept", guest: { status: "running" } });
  expect((ended as { reason: Error }).reason.message).toContain("Broken pipe");
  expect(rig.handOvers).toBe(0);
});

test("a migration that fails after the disks were given leaves the guest stranded, and that is told", async () => {
  const rig = await Rig.start();
  const { outcome } = await rig.beginHandOver();
  rig.handedOver.resolve(GIVEN);
  await settle();
  // The guest does not run yet when QEMU says that it has failed.
  rig.qemu.migrate("failed", { "error-desc": "Connection reset by peer" });
  await settle();
  rig.qemu.setGuest("running");
  const ended = await outcome;
  expect(ended).toMatchObject({ kind: "stranded", guest: { running: true, status: "running" } });
  expect((ended as { reason: Error }).reason.message).toContain("Connection reset by peer");
});

test("a stranded guest that does not run on is told as it is found", async () => {
  const rig = await Rig.start();
  const { outcome } = await rig.beginHandOver();
  rig.handedOver.resolve(GIVEN);
  await settle();
  rig.qemu.migrate("failed");
  for (let passedMs = 0; passedMs <= RESUME_TIMEOUT_MS; passedMs += 10 * URGENT_POLL_MS) {
    await settle();
    rig.qemu.clock.advance(10 * URGENT_POLL_MS);
  }
  expect(await outcome).toMatchObject({ kind: "stranded", guest: { running: false, status: "finish-migrate" } });
});

test("cancelling while memory moves cancels QEMU's migration", async () => {
  const rig = await Rig.start();
  const { outcome } = await rig.begin();
  rig.source.cancel();
  await settle();
  expect(rig.qemu.done.at(-1)).toBe("migrate_cancel");
  rig.qemu.migrate("cancelled");
  expect(await outcome).toMatchObject({ kind: "kept", reason: { message: "the migration was cancelled" } });
});

test("cancelling just before QEMU waits does not hand anything over", async () => {
  const rig = await Rig.start();
  const { outcome } = await rig.begin();
  rig.source.cancel();
  rig.qemu.setGuest("finish-migrate");
  rig.qemu.migrate("pre-switchover");
  await settle();
  expect(rig.handOvers).toBe(0);
  await rig.guestResumes("cancelled");
  expect(await outcome).toMatchObject({ kind: "kept" });
});

test("cancelling during the hand-over asks for the disks to be kept, and leaves QEMU alone until that is known", async () => {
  const rig = await Rig.start();
  const { outcome } = await rig.beginHandOver();
  rig.source.cancel();
  expect(rig.signal?.aborted).toBe(true);
  await settle();
  expect(rig.qemu.done.at(-1)).toBe("migrate");
  // It was too late: they are given.
  rig.handedOver.resolve(GIVEN);
  await settle();
  expect(rig.qemu.done.at(-1)).toBe("migrate-continue");
  rig.qemu.migrate("completed");
  expect(await outcome).toMatchObject({ kind: "completed" });
});

test("cancelling after the hand-over strands the guest, unless QEMU was quicker", async () => {
  for (const [status, kind] of [
    ["cancelled", "stranded"],
    ["completed", "completed"],
  ] as const) {
    const rig = await Rig.start();
    const { outcome } = await rig.beginHandOver();
    rig.handedOver.resolve(GIVEN);
    await settle();
    rig.source.cancel();
    await settle();
    expect(rig.qemu.done.at(-1)).toBe("migrate_cancel");
    await rig.guestResumes(status);
    expect(await outcome).toMatchObject({ kind });
  }
});

test("a QEMU that somebody else lets go on during the hand-over has not completed anything, when the disks are kept", async () => {
  const rig = await Rig.start();
  const { outcome } = await rig.beginHandOver();
  rig.qemu.guest = "postmigrate";
  rig.qemu.migrate("completed");
  await settle();
  const reason = rig.signal?.reason as Error;
  expect(reason.message).toContain("did not wait");
  rig.handedOver.resolve({ kind: "kept", reason });
  expect(await outcome).toMatchObject({ kind: "kept", reason, guest: { running: false, status: "postmigrate" } });
});

test("when somebody cancels QEMU's migration during the hand-over, the hand-over is asked to stop", async () => {
  const rig = await Rig.start();
  const { outcome } = await rig.beginHandOver();
  await rig.guestResumes("cancelled");
  expect(rig.signal?.aborted).toBe(true);
  // Too late; and QEMU does not want to go on.
  rig.qemu.on("migrate-continue", () => refused("Migration not in expected state: cancelled"));
  rig.handedOver.resolve(GIVEN);
  expect(await outcome).toMatchObject({ kind: "stranded", guest: { running: true } });
});

test("a QEMU that refuses to go on though it waits is lost, with the disks given", async () => {
  const rig = await Rig.start();
  const { outcome } = await rig.beginHandOver();
  rig.qemu.on("migrate-continue", () => refused("no"));
  rig.handedOver.resolve(GIVEN);
  expect(await outcome).toMatchObject({ kind: "lost", given: true, reason: { desc: "no" } });
});

test("a monitor that goes away is an outcome that says whether the disks were given", async () => {
  const before = await Rig.start();
  const early = await before.begin();
  before.qemu.die();
  expect(await early.outcome).toMatchObject({ kind: "lost", given: false, reason: { code: "closed" } });

  const during = await Rig.start();
  const middle = await during.beginHandOver();
  during.qemu.die();
  await settle();
  expect(during.signal?.aborted).toBe(true);
  during.handedOver.resolve({ kind: "kept", reason: new Error("kept") });
  expect(await middle.outcome).toMatchObject({ kind: "lost", given: false });

  const after = await Rig.start();
  const late = await after.beginHandOver();
  after.handedOver.resolve(GIVEN);
  await settle();
  after.qemu.die();
  expect(await late.outcome).toMatchObject({ kind: "lost", given: true });
  expect(after.qemu.clock.timers).toBe(0);
});

test("without events QEMU is asked often enough", async () => {
  const rig = await Rig.start();
  // This one takes the capability and does not keep to it.
  rig.qemu.on("migrate-set-capabilities", () => OK);
  rig.handedOver.resolve(GIVEN);
  const { outcome } = await rig.begin();
  for (const status of ["pre-switchover", "completed"]) {
    rig.qemu.migrate(status);
    rig.qemu.clock.advance(POLL_MS);
    await settle();
  }
  expect(await outcome).toMatchObject({ kind: "completed" });
});

test("what stands in the way is told beforehand, and nothing is changed then", async () => {
  const rig = await Rig.start();
  rig.qemu.capabilities.delete("return-path");
  rig.qemu.guest = "postmigrate";
  rig.qemu.migration = { status: "active", "blocked-reasons": ["a device cannot be migrated"] };
  expect(await rig.source.problems()).toEqual([
    'QEMU 7.2.19 does not know "return-path"',
    'the guest is in state "postmigrate"',
    "a migration is already under way (active)",
    "a device cannot be migrated",
  ]);
  await expect(rig.source.run(URI)).rejects.toThrow("a device cannot be migrated");
  expect(rig.qemu.done).toEqual(["qmp_capabilities"]);
});

test("a migration that QEMU does not begin leaves its settings as they were, and can be tried again", async () => {
  const rig = await Rig.start();
  const before = [...rig.qemu.capabilities];
  rig.qemu.on("migrate", () => refused("unknown migration protocol: x"));
  await expect(rig.source.run("x:y")).rejects.toBeInstanceOf(QmpCommandError);
  expect([...rig.qemu.capabilities]).toEqual(before);
  expect(rig.source.phase).toBe("idle");
  rig.qemu.on("migrate", () => OK);
  const { outcome } = await rig.begin();
  rig.qemu.migrate("failed");
  expect(await outcome).toMatchObject({ kind: "kept" });
});

test("after a failure the same guest can be migrated again", async () => {
  const rig = await Rig.start();
  const first = await rig.begin();
  rig.qemu.migrate("failed");
  await first.outcome;
  rig.handedOver.resolve(GIVEN);
  const second = await rig.beginHandOver();
  rig.qemu.migrate("completed");
  expect(await second.outcome).toMatchObject({ kind: "completed" });
});
