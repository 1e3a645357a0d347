/** Real guests move by `blockferry` alone: `source --qmp`, `dest --qmp`, one order, and one TCP connection for all of it. */
import { rmSync } from "node:fs";
import { expect } from "vitest";
import { formatAddress } from "../../src/env/links.ts";
import { startLine } from "../../tools/line/client.ts";
import { parseAddress } from "../../tools/line/options.ts";
import { linkOf, type MigrationProcess, Rig, tcpConnectionsOf } from "../interop/migrate/rig.ts";
import { type Guest, type GuestDisk, type GuestOptions, itBoots, startGuest } from "../support/guest.ts";
import { emptyDisk, expectSoundDisk, filledDisk } from "../support/guest-disk.ts";
import { Prng, runSeed } from "../support/seed.ts";
import { type TempDir, tempDir } from "../support/temp-dir.ts";

const DISKS = ["vda", "vdb"] as const;
const WAIT = { timeout: 60_000, interval: 50 };

interface SceneOptions {
  readonly destFlags?: readonly string[];
  readonly disks?: readonly string[];
  readonly onError?: "stop" | "report";
  /** Of the guest that moves, and not of the QEMU that waits for it. */
  readonly devices?: readonly string[];
  /** Of the line between the hosts; default: there is none. */
  readonly bitsPerSecond?: number;
}

/** Two hosts, and a QEMU on each: one with a guest at work, one that waits for it. */
class Scene implements AsyncDisposable {
  readonly rig: Rig;
  readonly #folder: TempDir;
  readonly #options: SceneOptions;
  readonly #stack = new AsyncDisposableStack();
  a!: MigrationProcess;
  b!: MigrationProcess;
  guestA!: Guest;
  guestB!: Guest;

  constructor(folder: TempDir, options: SceneOptions = {}) {
    this.#folder = folder;
    this.#options = options;
    this.rig = new Rig(folder, options.disks ?? DISKS);
  }

  async prepare(): Promise<void> {
    const { disks } = this.rig;
    this.a = this.#stack.use(await this.startSource());
    this.guestA = await this.#guest("src", { disks: this.#disksAt("a"), devices: this.#options.devices ?? [] });
    const working = Promise.all(disks.map((disk) => this.guestA.log.more("synced", 3, disk)));
    await this.startDest();
    await working;
  }

  startSource(link = "127.0.0.1:0"): Promise<MigrationProcess> {
    return this.rig.source({ flags: ["--qmp", this.#folder.file("src.qmp")], link });
  }

  /** `dest`, and the QEMU behind it. */
  async startDest(): Promise<void> {
    const flags = ["--qmp", this.#folder.file("dst.qmp"), ...(this.#options.destFlags ?? [])];
    this.b = this.#stack.use(await this.rig.dest(await this.#address(), { flags }));
    await this.startIncoming();
  }

  async startIncoming(): Promise<void> {
    // One that was killed leaves its socket.
    rmSync(this.#folder.file("dst.qmp"), { force: true });
    this.guestB = await this.#guest("dst", { disks: this.#disksAt("b"), incoming: "defer", log: this.guestA.log });
    (await this.guestB.qmp()).close();
  }

  async #address(): Promise<string> {
    const { bitsPerSecond } = this.#options;
    const link = await linkOf(this.a);
    if (bitsPerSecond === undefined) return link;
    const { address } = this.#stack.use(await startLine({ target: parseAddress(link), bitsPerSecond }));
    return formatAddress(address);
  }

  /** Guest and disks are sound, wherever they are; `sidecar` is the one that serves them. */
  async expectSound(guest: Guest, sidecar: MigrationProcess, side: "a" | "b"): Promise<void> {
    await guest.verifyAll(this.rig.disks);
    await guest.finish();
    expect(guest.log.complaints()).toEqual([]);
    expect(await sidecar.stop()).toBe(0);
    for (const disk of this.rig.disks) await expectSoundDisk(this.rig.image(side, disk), disk, guest.log);
  }

  moreSynced(guest: Guest): Promise<unknown> {
    return Promise.all(this.rig.disks.map((disk) => guest.log.more("synced", 3, disk)));
  }

  async #guest(name: string, options: Omit<GuestOptions, "folder" | "name">): Promise<Guest> {
    return this.#stack.use(await startGuest({ folder: this.#folder, name, ...options }));
  }

  #disksAt(side: "a" | "b"): GuestDisk[] {
    const { onError = "report" } = this.#options;
    const socket = this.rig.socket(side);
    return this.rig.disks.map((exportName) => ({ socket, exportName, reconnectSeconds: 20, onError }));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#stack.disposeAsync();
  }
}

for (const side of ["source", "destination"] as const) {
  itBoots([], `one order on the ${side} moves a guest at work, memory and disks, over one connection`, async () => {
    using folder = tempDir();
    await using scene = new Scene(folder, { destFlags: ["--rate", "16K"] });
    for (const disk of DISKS) emptyDisk(scene.rig.image("a", disk));
    await scene.prepare();
    const { a, b, guestA, guestB } = scene;
    expect(await a.ask("switchover", "--dry-run")).toContain("would be done");
    // While the disks are over there, and the last of the memory on its way.
    const looking = a.call("wait", { for: "active" }).then(() => tcpConnectionsOf(a));

    const said = await (side === "source" ? a : b).ask("switchover", "--wait");
    expect(said).toContain(side === "source" ? "the guest runs there" : "the destination has the disks");
    expect(await looking).toHaveLength(1);
    expect((await a.status()).migration?.guest?.phase).toBe("started");
    expect((await b.status()).migration?.guest?.phase).toBe("started");
    await guestA.kill();
    await scene.moreSynced(guestB);
    await b.ask("set-speed", "unlimited");
    await b.reached("complete");
    await a.kill();
    await scene.expectSound(guestB, b, "b");
  });
}

itBoots([], "QEMU fails after migrate-continue: the guest goes on here, and has its disks back", async () => {
  using folder = tempDir();
  // A device that the other QEMU does not have: what it cannot load comes after all memory.
  await using scene = new Scene(folder, { devices: ["virtio-rng-pci"] });
  for (const disk of DISKS) emptyDisk(scene.rig.image("a", disk));
  await scene.prepare();
  const { a, b, guestA, guestB } = scene;
  const { status, stderr } = await a.tryAsk("switchover", "--wait");
  expect(stderr).toContain("after the disks were given away");
  expect(status).toBe(2);
  await guestB.ended;
  expect(await b.ended).toBe(2);
  const { migration } = await a.status();
  expect(migration).toMatchObject({ phase: "setup", owner: "source", guest: { phase: "failed" } });
  await scene.moreSynced(guestA);
  await scene.expectSound(guestA, a, "a");
});

itBoots(
  [],
  "a destination without a QEMU, or with one that waits for nobody, is refused before anything begins",
  async () => {
    using folder = tempDir();
    await using scene = new Scene(folder);
    for (const disk of DISKS) emptyDisk(scene.rig.image("a", disk));
    await scene.prepare();
    const { a, guestA, guestB } = scene;
    await guestB.kill();
    const alone = await a.tryAsk("switchover", "--wait");
    expect(alone.stderr).toMatch(/on the destination: .*\n.*do: {2}start QEMU with -qmp/);
    expect(alone.status).toBe(69);
    const rehearsed = await a.tryAsk("switchover", "--dry-run");
    expect(rehearsed.stdout).toContain("would not be done: on the destination:");
    expect(rehearsed.status).toBe(2);

    await scene.startIncoming();
    using taken = await guestA.qmp();
    const busy = await a.tryAsk("switchover", "--wait");
    expect(busy.stderr).toMatch(/another client, libvirt perhaps, has its monitor/);
    expect(busy.status).toBe(75);
    taken.close();

    await a.ask("switchover", "--wait");
    await guestA.kill();
    await scene.moreSynced(scene.guestB);
    await scene.b.reached("complete");
    await scene.expectSound(scene.guestB, scene.b, "b");
  },
);

itBoots([], "called off while memory is on its way, the guest goes on here as if nothing had been", async () => {
  using folder = tempDir();
  // Memory takes a minute.
  await using scene = new Scene(folder, { bitsPerSecond: 16_000_000, destFlags: ["--mode", "postcopy"] });
  for (const disk of DISKS) emptyDisk(scene.rig.image("a", disk));
  await scene.prepare();
  const { a, b, guestA, guestB } = scene;
  const ordered = a.tryAsk("switchover", "--wait");
  await expect.poll(async () => (await a.status()).migration?.guest?.sentBytes, WAIT).toBeGreaterThan(0);
  await a.ask("cancel", "--reason", "not today");
  const { status, stderr } = await ordered;
  expect(stderr).toContain("QEMU's migration did not take place");
  expect(status).toBe(2);
  await guestB.ended;
  expect(await b.ended).toBe(2);
  await scene.moreSynced(guestA);
  await scene.expectSound(guestA, a, "a");
});

itBoots([], "with pause, a guest stands still while the source is away, and goes on when it is back", async () => {
  using folder = tempDir();
  const destFlags = ["--mode", "postcopy", "--rate", "64K", "--on-source-loss=pause", "--source-loss-deadline=1s"];
  await using scene = new Scene(folder, { disks: ["vda"], onError: "stop", destFlags });
  await filledDisk(scene.rig.image("a"), new Prng(runSeed(), "pause"));
  await scene.prepare();
  const { a, b, guestA, guestB } = scene;
  await a.ask("switchover", "--wait");
  await guestA.kill();
  const link = await linkOf(a);
  await a.kill();
  const verified = guestB.verifyAll(["vda"]);
  await expect.poll(() => stateOf(guestB), WAIT).toBe("io-error");
  await using again = await scene.startSource(link);
  await b.ask("set-speed", "unlimited");
  await verified;
  expect(await stateOf(guestB)).toBe("running");
  await b.reached("complete");
  await again.kill();
  await scene.expectSound(guestB, b, "b");
});

async function stateOf(guest: Guest): Promise<string> {
  using client = await guest.qmp();
  return (await client.execute("query-status")).status;
}
