/** A guest's disks move from one process to another while the guest is at work; nothing is lost, and nothing is wrong. */
import { existsSync } from "node:fs";
import { expect } from "vitest";
import { startLine } from "../../../tools/line/client.ts";
import { parseAddress } from "../../../tools/line/options.ts";
import { imageDifference, type Region } from "../../support/patterns.ts";
import { run, runOk } from "../../support/run.ts";
import { counts, itSeeded, type Prng } from "../../support/seed.ts";
import { tempDir } from "../../support/temp-dir.ts";
import { itWith } from "../../support/tools.ts";
import { MiB } from "../serve/layout.ts";
import { LiveGuest } from "./guest.ts";
import { linkOf, type MigrationProcess, Rig, tcpConnectionsOf } from "./rig.ts";

const SIZE = 24 * MiB;
/** Holes between, as file systems leave them. */
const REGIONS: readonly Region[] = [
  { offset: 0, length: 5 * MiB, salt: 1 },
  { offset: 8 * MiB, length: 10 * MiB, salt: 1 },
  { offset: 23 * MiB, length: MiB, salt: 1 },
];

function guestOn(rig: Rig, rng: Prng): LiveGuest {
  return new LiveGuest(rig.socket("a"), { disks: rig.disks, sizeBytes: SIZE, regions: REGIONS, rng });
}

/** Both ends at work, and a guest. */
async function begin(rig: Rig, rng: Prng, flags: readonly string[] = []) {
  rig.makeDisks(SIZE, REGIONS);
  const source = await rig.source();
  const guest = guestOn(rig, rng);
  await guest.more(50);
  const dest = await rig.dest(await linkOf(source), { flags });
  return { source, dest, guest };
}

/** The guest stands still, the disks change hands, the guest goes on over there. */
async function switchOver(asked: MigrationProcess, guest: LiveGuest, rig: Rig): Promise<void> {
  await asked.reached("ready");
  await guest.pause();
  await asked.switchover();
  guest.moveTo(rig.socket("b"));
  guest.resume();
}

/** Everything is there; the guest stops; its disks are what it left. */
async function finish(guest: LiveGuest, dest: MigrationProcess, rig: Rig): Promise<void> {
  await dest.reached("complete");
  await guest.more(30);
  await guest.stop();
  expect(await dest.stop()).toBe(0);
  for (const disk of rig.disks) {
    expect(imageDifference(rig.image("b", disk), SIZE, guest.regionsOf(disk))).toBeUndefined();
  }
}

itSeeded("two disks move as one under a guest at work, over one TCP connection", async (rng) => {
  using folder = tempDir();
  const rig = new Rig(folder, ["vda", "vdb"]);
  const { source, dest, guest } = await begin(rig, rng, ["--rate", "64K"]);
  await using _all = together(source, dest, guest);
  await guest.more(100);
  await switchOver(source, guest, rig);
  await guest.more(200);
  expect(await tcpConnectionsOf(dest)).toHaveLength(1);
  expect(await tcpConnectionsOf(source)).toHaveLength(1);
  await dest.call("set-speed", { bytesPerSecond: null });
  await finish(guest, dest, rig);
  expect(await source.phase).toBe("released");
});

itSeeded("writes that are under way at the switchover are held, and done again at the destination", async (rng) => {
  using folder = tempDir();
  const rig = new Rig(folder);
  const { source, dest, guest } = await begin(rig, rng);
  await using _all = together(source, dest, guest);
  await expect(source.call("switchover", { wait: true })).rejects.toMatchObject({ code: "writers" });
  await expect(dest.call("switchover", { wait: true })).rejects.toThrow("the guest is writing");
  await dest.switchover({ force: true });
  guest.moveTo(rig.socket("b"));
  await finish(guest, dest, rig);
});

itSeeded("a link that is cut before and after the switchover is taken up again", async (rng) => {
  using folder = tempDir();
  const rig = new Rig(folder);
  rig.makeDisks(SIZE, REGIONS);
  await using source = await rig.source();
  await using line = await startLine({ target: parseAddress(await linkOf(source)), rttMs: 2 });
  const guest = guestOn(rig, rng);
  const { address } = line;
  if (address.kind !== "tcp") throw new Error("lines listen on TCP");
  const dest = await rig.dest(`127.0.0.1:${address.port}`, { flags: ["--rate", "4M"] });
  await using _all = together(dest, guest);
  await guest.more(20);
  await line.cutNow();
  await switchOver(dest, guest, rig);
  await guest.more(20);
  await line.cutNow();
  await guest.more(20);
  await dest.call("set-speed", { bytesPerSecond: null });
  await finish(guest, dest, rig);
  expect((await source.status()).migration?.lastError ?? "").not.toContain("refused");
});

itSeeded("a destination that is killed under its guest goes on where it was", async (rng) => {
  using folder = tempDir();
  const rig = new Rig(folder, ["vda", "vdb"]);
  const { source, dest, guest } = await begin(rig, rng, ["--mode", "postcopy", "--rate", "2M"]);
  await using _all = together(source, dest, guest);
  await switchOver(dest, guest, rig);
  await guest.more(100);
  await dest.kill();
  await using again = await rig.dest(await linkOf(source));
  await guest.more(100);
  await finish(guest, again, rig);
});

itSeeded("while the source is stopped, what is here goes on, and the rest waits for it", async (rng) => {
  using folder = tempDir();
  const rig = new Rig(folder);
  const { source, dest, guest } = await begin(rig, rng, ["--mode", "postcopy", "--rate", "1M"]);
  await using _all = together(source, dest, guest);
  await switchOver(source, guest, rig);
  process.kill(source.pid, "SIGSTOP");
  const missing = (await dest.call("missing", {})).runs;
  expect(missing.length).toBeGreaterThan(0);
  await using client = await dest.open({ exportName: "vda" });
  const stalled = client.read(missing.at(-1)?.[0] ?? 0, Buffer.alloc(4096));
  // It is noticed when nothing has come for eleven seconds.
  if (counts({ local: 0, ci: 1 }) > 0) {
    await expect.poll(async () => (await dest.status()).migration?.shown, { timeout: 60_000 }).toBe("disconnected");
  }
  await client.write(0, Buffer.alloc(0));
  process.kill(source.pid, "SIGCONT");
  await stalled;
  await dest.call("set-speed", { bytesPerSecond: null });
  await finish(guest, dest, rig);
});

for (const format of ["qcow2", "qed"] as const) {
  itWith(["qemu-img"], `a raw disk arrives as ${format}, which QEMU finds sound and the same`, async () => {
    using folder = tempDir();
    const rig = new Rig(folder);
    rig.makeDisks(SIZE, REGIONS);
    await using source = await rig.source();
    const image = rig.image("b", "vda", `.${format}`);
    await using dest = await rig.dest(await linkOf(source), { extension: `.${format}`, flags: ["--mode", "postcopy"] });
    await dest.switchover();
    await dest.reached("complete");
    expect(await dest.stop()).toBe(0);
    await runOk(["qemu-img", "check", "-f", format, image]);
    const compared = await runOk(["qemu-img", "compare", "-f", "raw", "-F", format, rig.image("a"), image]);
    expect(compared).toContain("Images are identical");
  });
}

itWith([], "a second destination is refused, and the first one goes on", async () => {
  using folder = tempDir();
  const rig = new Rig(folder);
  rig.makeDisks(SIZE, REGIONS);
  await using source = await rig.source();
  const address = await linkOf(source);
  await using dest = await rig.dest(address);
  const second = await rig.runDest(address, {}, "c");
  expect(second.status).toBe(69);
  expect(second.stderr).toContain("refuse");
  expect(existsSync(rig.image("c"))).toBe(false);
  await dest.switchover();
  await dest.reached("complete");
  expect(await dest.stop()).toBe(0);
  expect((await run(["cmp", rig.image("a"), rig.image("b")])).status).toBe(0);
});

/** Whatever becomes of the test, none of them outlives it. */
function together(...parts: readonly AsyncDisposable[]): AsyncDisposable {
  return {
    [Symbol.asyncDispose]: async () => {
      for (const part of [...parts].reverse()) await part[Symbol.asyncDispose]();
    },
  };
}
