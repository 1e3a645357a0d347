import { expect, test } from "vitest";
import { LossPause } from "../../../src/qmp/loss-pause.ts";
import { FakeQemu, refused, settle } from "./fake-qemu.ts";

async function rig() {
  const qemu = new FakeQemu();
  const client = await qemu.connect();
  const reported: string[] = [];
  const pause = new LossPause(client, { onReported: (device) => reported.push(device) });
  return { qemu, pause, reported };
}

function ioError(qemu: FakeQemu, action: string): void {
  qemu.event("BLOCK_IO_ERROR", { device: "vda", operation: "read", action, nospace: false });
  if (action === "stop") qemu.setGuest("io-error");
}

test("a guest that an I/O error has stopped runs on when the source is back", async () => {
  const { qemu, pause } = await rig();
  ioError(qemu, "stop");
  await settle();
  expect(pause.stops).toBe(1);
  const back = pause.sourceIsBack();
  await settle();
  expect(qemu.guest).toBe("running");
  qemu.clock.advance(1000);
  expect(await back).toMatchObject({ running: true });
  expect(qemu.done.filter((name) => name === "cont")).toHaveLength(1);
  expect(qemu.clock.timers).toBe(0);
});

test("a failure that was under way when the source came back does not leave the guest stopped", async () => {
  const { qemu, pause } = await rig();
  ioError(qemu, "stop");
  const back = pause.sourceIsBack();
  await settle();
  qemu.clock.advance(300);
  ioError(qemu, "stop");
  await settle();
  expect(qemu.guest).toBe("running");
  qemu.clock.advance(700);
  expect(await back).toMatchObject({ running: true });
  expect(qemu.done.filter((name) => name === "cont")).toHaveLength(2);
});

test("a guest that somebody has paused stays paused", async () => {
  const { qemu, pause } = await rig();
  qemu.setGuest("paused");
  const back = pause.sourceIsBack();
  await settle();
  qemu.clock.advance(1000);
  expect(await back).toMatchObject({ status: "paused" });
  expect(qemu.done).not.toContain("cont");
});

test("an error that goes on does not make the guest run and stop for ever", async () => {
  const { qemu, pause } = await rig();
  ioError(qemu, "stop");
  let continued = 0;
  qemu.on("cont", () => {
    continued += 1;
    if (continued <= 50) qemu.clock.advance(100);
    return { return: {} };
  });
  expect(await pause.sourceIsBack()).toMatchObject({ status: "io-error" });
  expect(continued).toBeLessThanOrEqual(11);
});

test("an error that the guest was told of is reported, with its disk", async () => {
  const { qemu, reported } = await rig();
  ioError(qemu, "report");
  ioError(qemu, "ignore");
  // A disk that was given to QEMU by -blockdev has no other name.
  qemu.event("BLOCK_IO_ERROR", { device: "", "node-name": "disk1", operation: "write", action: "report" });
  await settle();
  expect(reported).toEqual(["vda", "disk1"]);
});

test("a cont that QEMU refuses is no failure of ours", async () => {
  const { qemu, pause } = await rig();
  ioError(qemu, "stop");
  qemu.on("cont", () => {
    qemu.clock.advance(1000);
    return refused("the guest has been reset");
  });
  expect(await pause.sourceIsBack()).toMatchObject({ status: "io-error" });
});
