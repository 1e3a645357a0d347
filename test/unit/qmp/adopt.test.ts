/** A process that comes after the one that has begun: what QEMU says, and what was noted, is all it has. */
import { expect, test } from "vitest";
import { QmpError } from "../../../src/qmp/errors.ts";
import { URGENT_POLL_MS } from "../../../src/qmp/limits.ts";
import { settle } from "./fake-qemu.ts";
import { Rig } from "./source-rig.ts";

test("a hand-over that does not know who has the disks leaves the guest standing, for adopt to end", async () => {
  const rig = await Rig.start();
  const { outcome } = await rig.beginHandOver();
  rig.handedOver.reject(new Error("the link is gone"));
  expect(await outcome).toMatchObject({ kind: "undecided", reason: { message: "the link is gone" } });
  expect(rig.qemu.done.at(-1)).toBe("migrate");
  const adopted = rig.source.adopt(true);
  await settle();
  expect(rig.qemu.done.at(-1)).toBe("migrate-continue");
  // The state of the guest follows that of the migration.
  rig.qemu.migrate("completed");
  await settle();
  rig.qemu.setGuest("postmigrate");
  rig.qemu.clock.advance(URGENT_POLL_MS);
  expect(await adopted).toMatchObject({ kind: "completed" });
  expect(rig.handOvers).toBe(1);
});

test("adopting ends what a former process began, whatever QEMU has made of it meanwhile", async () => {
  for (const [status, given, kind] of [
    ["completed", true, "completed"],
    ["completed", false, "kept"],
    ["failed", true, "stranded"],
    ["failed", false, "kept"],
    ["cancelled", false, "kept"],
    [undefined, true, "lost"],
    [undefined, false, "kept"],
  ] as const) {
    const rig = await Rig.start();
    if (status !== undefined) rig.qemu.migrate(status);
    if (status === "completed") rig.qemu.guest = "postmigrate";
    expect(await rig.source.adopt(given)).toMatchObject({ kind });
  }
});

test("who adopts a guest that has left asks where it is, and lets none run on what nobody has noted", async () => {
  for (const [guest, kind] of [
    ["postmigrate", "completed"],
    // Somebody has let it go on here, and has stopped it perhaps.
    ["running", "stranded"],
    ["paused", "stranded"],
  ] as const) {
    for (const guestWasRunning of [true, false, undefined]) {
      const rig = await Rig.start();
      rig.qemu.migrate("completed");
      rig.qemu.guest = guest;
      const ended = await rig.source.adopt(true, guestWasRunning);
      expect(ended).toMatchObject(
        kind === "completed" ? { kind, guestWasRunning } : { kind, guest: { status: guest } },
      );
      expect(rig.qemu.done).toEqual(["qmp_capabilities"]);
    }
  }
});

test("a QEMU that has never migrated is not the one whose disks were given away", async () => {
  const rig = await Rig.start();
  rig.qemu.guest = "inmigrate";
  const ended = await rig.source.adopt(true, true);
  expect(ended).toMatchObject({ kind: "lost", given: true, reason: { code: "state" } });
  expect((ended as { reason: Error }).reason.message).toContain("another one");
});

test("what a former process has left waiting is called off, and nothing is where QEMU is at its end", async () => {
  const reason = new QmpError("state", "it was killed");
  const rig = await Rig.start();
  rig.qemu.capabilities.set("events", true);
  rig.qemu.guest = "finish-migrate";
  rig.qemu.migrate("pre-switchover");
  const outcome = rig.source.callOff(reason);
  await settle();
  expect(new Set(rig.qemu.done)).toEqual(new Set(["qmp_capabilities", "migrate_cancel"]));
  await rig.guestResumes("cancelled");
  expect(await outcome).toMatchObject({ kind: "kept", reason, guest: { running: true } });
  expect(rig.handOvers).toBe(0);
  for (const status of ["completed", "failed", "cancelled"]) {
    const over = await Rig.start();
    over.qemu.migrate(status);
    expect(await over.source.callOff(reason)).toBeUndefined();
    expect(over.qemu.done).toEqual(["qmp_capabilities"]);
  }
});

test("an adopted migration that waits is handed over, if that was not done before", async () => {
  const rig = await Rig.start();
  rig.qemu.capabilities.set("events", true);
  rig.qemu.guest = "finish-migrate";
  rig.qemu.migrate("pre-switchover");
  rig.handedOver.resolve({ kind: "kept", reason: new Error("begin anew") });
  const outcome = rig.source.adopt(false);
  await settle();
  expect(rig.handOvers).toBe(1);
  await rig.guestResumes("cancelled");
  expect(await outcome).toMatchObject({ kind: "kept" });
});
