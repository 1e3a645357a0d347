/**
 * An unmodified guest, whose QEMU has its images open itself, moves with `source --late-open`: nothing of ours is in its way
 * before, and its disks follow when it has moved.
 */
import { rmSync, truncateSync } from "node:fs";
import { expect } from "vitest";
import { linkOf, type MigrationProcess, Rig, tcpConnectionsOf } from "../interop/migrate/rig.ts";
import { type Guest, type GuestOptions, itBoots, startGuest } from "../support/guest.ts";
import { expectSoundDisk, filledDisk } from "../support/guest-disk.ts";
import { run } from "../support/run.ts";
import { Prng, runSeed } from "../support/seed.ts";
import { BLOCKFERRY } from "../support/serve-process.ts";
import { type TempDir, tempDir } from "../support/temp-dir.ts";

const DISKS = ["vda", "vdb"] as const;

class Scene implements AsyncDisposable {
  readonly rig: Rig;
  readonly #folder: TempDir;
  readonly #stack = new AsyncDisposableStack();
  a!: MigrationProcess;
  b!: MigrationProcess;
  guestA!: Guest;
  guestB!: Guest;

  constructor(folder: TempDir) {
    this.#folder = folder;
    this.rig = new Rig(folder, DISKS);
  }

  /** A guest that works long before there is a `source`. */
  async prepare(devices: readonly string[] = []): Promise<void> {
    for (const disk of DISKS) {
      await filledDisk(this.rig.image("a", disk), new Prng(runSeed(), disk), { files: 40 });
    }
    const disks = DISKS.map((disk) => ({ file: this.rig.image("a", disk) }));
    this.guestA = await this.#guest("src", { disks, devices });
    await this.moreSynced(this.guestA);
    this.a = this.#stack.use(
      await this.rig.source({ flags: ["--late-open", "--qmp", this.#folder.file("src.qmp")], ownSocket: false }),
    );
    const flags = ["--qmp", this.#folder.file("dst.qmp"), "--rate", "1M"];
    this.b = this.#stack.use(await this.rig.dest(await linkOf(this.a), { flags }));
    await this.startIncoming();
  }

  async startIncoming(): Promise<void> {
    // One that has ended leaves its socket.
    rmSync(this.#folder.file("dst.qmp"), { force: true });
    const disks = DISKS.map((exportName) => ({ socket: this.rig.socket("b"), exportName, reconnectSeconds: 20 }));
    this.guestB = await this.#guest("dst", { disks, incoming: "defer", log: this.guestA.log });
    (await this.guestB.qmp()).close();
  }

  moreSynced(guest: Guest): Promise<unknown> {
    return Promise.all(DISKS.map((disk) => guest.log.more("synced", 3, disk)));
  }

  async expectSound(guest: Guest, side: "a" | "b"): Promise<void> {
    await guest.verifyAll(DISKS);
    await guest.finish();
    expect(guest.log.complaints()).toEqual([]);
    expect(await (side === "a" ? this.a : this.b).stop()).toBe(0);
    for (const disk of DISKS) await expectSoundDisk(this.rig.image(side, disk), disk, guest.log);
  }

  async #guest(name: string, options: Omit<GuestOptions, "folder" | "name">): Promise<Guest> {
    return this.#stack.use(await startGuest({ folder: this.#folder, name, ...options }));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#stack.disposeAsync();
  }
}

itBoots([], "an unmodified guest on local images moves, and its disks follow it, over one connection", async () => {
  using folder = tempDir();
  await using scene = new Scene(folder);
  await scene.prepare();
  const { a, b, guestA, guestB } = scene;
  // Until it has moved, its QEMU has the images for itself, and nothing is pulled.
  expect((await b.status()).disks.map(({ localBytes }) => localBytes)).toEqual([0, 0]);
  const looking = a.call("wait", { for: "active" }).then(() => tcpConnectionsOf(a));
  expect(await a.ask("switchover", "--wait")).toContain("the guest runs there");
  expect(await looking).toHaveLength(1);
  await guestA.kill();
  await scene.moreSynced(guestB);
  await b.ask("set-speed", "unlimited");
  await b.reached("complete");
  await a.kill();
  await scene.expectSound(guestB, "b");
  const refused = await run([BLOCKFERRY, "serve", "-U", "-", scene.rig.image("a")]);
  expect(refused.stderr).toContain("was moved to destination");
});

itBoots([], "QEMU fails late: the guest goes on, on its own images", async () => {
  using folder = tempDir();
  await using scene = new Scene(folder);
  // A device that the other QEMU does not have: what it cannot load comes after all memory.
  await scene.prepare(["virtio-rng-pci"]);
  const { a, b, guestA, guestB } = scene;
  const { status, stderr } = await a.tryAsk("switchover", "--wait");
  expect(stderr).toContain("QEMU's migration did not take place");
  expect(status).toBe(2);
  await guestB.ended;
  expect((await a.status()).migration).toMatchObject({ owner: "source", guest: { phase: "failed" } });
  await scene.moreSynced(guestA);
  expect(await b.stop()).toBe(0);
  await scene.expectSound(guestA, "a");
});

itBoots(
  [],
  "an image that is another one when the guest has moved stays, and so does the guest; the next time it moves",
  async () => {
    using folder = tempDir();
    await using scene = new Scene(folder);
    await scene.prepare();
    const { a, b, guestA } = scene;
    const sizeBytes = (await a.status()).disks[0]?.sizeBytes ?? 0;
    truncateSync(scene.rig.image("a"), sizeBytes + 4096);
    const { status, stderr } = await a.tryAsk("switchover", "--wait");
    expect(stderr).toContain("has changed its size");
    expect(status).toBe(2);
    await scene.guestB.ended;
    await scene.moreSynced(guestA);
    truncateSync(scene.rig.image("a"), sizeBytes);
    await scene.startIncoming();
    expect(await b.ask("switchover", "--wait")).toContain("the destination has the disks");
    await guestA.kill();
    await scene.moreSynced(scene.guestB);
    await b.ask("set-speed", "unlimited");
    await b.reached("complete");
    await scene.expectSound(scene.guestB, "b");
  },
);
