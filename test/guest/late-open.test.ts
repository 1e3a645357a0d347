/**
 * An unmodified guest, whose QEMU has its images open itself, moves with `source --late-open`: nothing of ours is in its way
 * before, and its disks follow when it has moved.
 */
import { rmSync, statSync, truncateSync } from "node:fs";
import { expect, vi } from "vitest";
import { ControlClient } from "../../src/control/client.ts";
import { realClock } from "../../src/os/clock.ts";
import { realLinks } from "../../src/os/dial.ts";
import { linkOf, type MigrationProcess, Rig, tcpConnectionsOf } from "../interop/migrate/rig.ts";
import { type Guest, type GuestOptions, itBoots, startGuest } from "../support/guest.ts";
import { expectSoundDisk, filledDisk } from "../support/guest-disk.ts";
import { holdOpening } from "../support/hold-opening.ts";
import { LoopDevice } from "../support/loop-device.ts";
import { makeImage } from "../support/patterns.ts";
import { type RunResult, run } from "../support/run.ts";
import { Prng, runSeed } from "../support/seed.ts";
import { BLOCKFERRY } from "../support/serve-process.ts";
import { type TempDir, tempDir } from "../support/temp-dir.ts";
import { requireRoot } from "../support/tools.ts";

const DISKS = ["vda", "vdb"] as const;
const WAIT = { timeout: 60_000, interval: 20 };

interface Preparation {
  /** Of the guest that moves, and not of the QEMU that waits for it. */
  readonly devices?: readonly string[];
  /** The QEMU that waits for it would let it run by itself. */
  readonly autostart?: boolean;
  /** vda is a block device, here and there. */
  readonly volumes?: boolean;
}

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
  async prepare({ devices = [], autostart = false, volumes = false }: Preparation = {}): Promise<void> {
    for (const disk of DISKS) {
      await filledDisk(this.rig.image("a", disk), new Prng(runSeed(), disk), { files: 40 });
    }
    if (volumes) this.#makeVolumes();
    const disks = DISKS.map((disk) => ({ file: this.rig.image("a", disk) }));
    this.guestA = await this.#guest("src", { disks, devices });
    await this.moreSynced(this.guestA);
    await this.startSource();
    await this.startDest();
    await this.startIncoming({ autostart });
  }

  /** The other one is larger, and was something else before. */
  #makeVolumes(): void {
    const sizeBytes = statSync(this.rig.image("a")).size + 4096;
    makeImage(this.rig.image("b"), sizeBytes, [{ offset: 0, length: 2 ** 24, salt: 7 }]);
    for (const side of ["a", "b"] as const) this.#stack.use(LoopDevice.inPlaceOf(this.rig.image(side)));
  }

  async startSource(link = "127.0.0.1:0"): Promise<void> {
    const flags = ["--late-open", "--qmp", this.#folder.file("src.qmp")];
    this.a = this.#stack.use(await this.rig.source({ flags, ownSocket: false, link }));
  }

  async startDest(): Promise<void> {
    const flags = ["--qmp", this.#folder.file("dst.qmp"), "--rate", "1M", "--overwrite-device"];
    this.b = this.#stack.use(await this.rig.dest(await linkOf(this.a), { flags }));
  }

  async startIncoming({ autostart = false } = {}): Promise<void> {
    // One that has ended leaves its socket.
    rmSync(this.#folder.file("dst.qmp"), { force: true });
    const disks = DISKS.map((exportName) => ({ socket: this.rig.socket("b"), exportName, reconnectSeconds: 20 }));
    this.guestB = await this.#guest("dst", { disks, incoming: "defer", autostart, log: this.guestA.log });
    (await this.guestB.qmp()).close();
  }

  moreSynced(guest: Guest): Promise<unknown> {
    return Promise.all(DISKS.map((disk) => guest.log.more("synced", 3, disk)));
  }

  /** It has moved: it works on B, A's QEMU and `source` end, and B has everything. */
  async finish(): Promise<void> {
    await this.guestA.kill();
    await this.moreSynced(this.guestB);
    await this.b.ask("set-speed", "unlimited");
    await this.b.reached("complete");
    await this.a.kill();
    await this.expectSound(this.guestB, "b");
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

async function guestPhase(side: MigrationProcess): Promise<string | undefined> {
  return (await side.status()).migration?.guest?.phase;
}

/** The control socket of a process, for several orders in a row. */
async function controlOf({ control }: MigrationProcess): Promise<ControlClient> {
  return await ControlClient.connect(await realLinks.dial({ kind: "unix", path: control }), realClock);
}

itBoots([], "an unmodified guest on local images moves, and its disks follow it, over one connection", async () => {
  using folder = tempDir();
  await using scene = new Scene(folder);
  await scene.prepare();
  const { a, b, guestA } = scene;
  // Until it has moved, its QEMU has the images for itself, and nothing is pulled.
  expect((await b.status()).disks.map(({ localBytes }) => localBytes)).toEqual([0, 0]);
  const looking = a.call("wait", { for: "active" }).then(() => tcpConnectionsOf(a));
  expect(await a.ask("switchover", "--wait")).toContain("the guest runs there");
  expect(await looking).toHaveLength(1);
  // Nobody lets the guest run here as well, for as long as the source has its images.
  using monitor = await guestA.qmp();
  await expect(monitor.execute("cont")).rejects.toThrow("lock");
  await scene.finish();
  const refused = await run([BLOCKFERRY, "serve", "-U", "-", scene.rig.image("a")]);
  expect(refused.stderr).toContain("was moved to destination");
});

itBoots(
  ["losetup"],
  "an unmodified guest on a volume moves to another volume, which was something else before",
  async (context) => {
    requireRoot(context, "attaching a loop device");
    using folder = tempDir();
    vi.stubEnv("BLOCKFERRY_DEVICES_DIR", folder.file("devices"));
    try {
      await using scene = new Scene(folder);
      await scene.prepare({ volumes: true });
      await scene.a.ask("switchover", "--wait");
      await scene.finish();
    } finally {
      vi.unstubAllEnvs();
    }
  },
);

itBoots([], "QEMU fails late: the guest goes on, on its own images", async () => {
  using folder = tempDir();
  await using scene = new Scene(folder);
  // A device that the other QEMU does not have: what it cannot load comes after all memory.
  await scene.prepare({ devices: ["virtio-rng-pci"] });
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
    {
      // QEMU has seen it as well.
      using monitor = await guestA.qmp();
      await monitor.execute("block_resize", { "node-name": "disk0", size: sizeBytes });
    }
    await scene.startIncoming();
    expect(await b.ask("switchover", "--wait")).toContain("the destination has the disks");
    await guestA.kill();
    await scene.moreSynced(scene.guestB);
    await b.ask("set-speed", "unlimited");
    await b.reached("complete");
    await scene.expectSound(scene.guestB, "b");
  },
);

itBoots(
  ["strace"],
  "called off or killed while it opens the images, the source keeps nothing from its guest",
  async () => {
    using folder = tempDir();
    await using scene = new Scene(folder);
    await scene.prepare({ autostart: true });
    const { guestA, rig } = scene;
    const link = await linkOf(scene.a);
    let moved: Promise<RunResult>;
    {
      await using held = await holdOpening(scene.a, rig.image("a", "vdb"));
      moved = scene.a.tryAsk("switchover", "--wait");
      await expect.poll(() => guestPhase(scene.a), WAIT).toBe("starting");
      // All of it is over there, and its disks are not.
      await expect.poll(() => guestPhase(scene.b), WAIT).toMatch(/arrived|started/);
      expect(await guestPhase(scene.b)).toBe("arrived");
      using control = await controlOf(scene.a);
      const cancelled = control.call("cancel", { reason: "not today" }, { timeoutMs: null });
      // What comes after it on one connection is answered when it has begun.
      await control.call("status", {});
      await held[Symbol.asyncDispose]();
      await cancelled;
    }
    expect((await moved).stderr).toContain("the guest goes on here");
    await Promise.all([scene.moreSynced(guestA), scene.guestB.ended, scene.b.ended]);

    await scene.startDest();
    await scene.startIncoming();
    {
      await using held = await holdOpening(scene.a, rig.image("a", "vdb"));
      const lost = scene.a.tryAsk("switchover", "--wait");
      await expect.poll(() => guestPhase(scene.a), WAIT).toBe("starting");
      const killed = scene.a.kill();
      // A process is not gone before who traces it has let go of it.
      await held[Symbol.asyncDispose]();
      await Promise.all([killed, lost]);
    }
    await scene.startSource(link);
    await scene.b.reached("ready");
    // It is over there, and stands still: the next process goes on.
    expect(await scene.a.ask("switchover", "--wait")).toContain("the guest runs there");
    await guestA.kill();
    await scene.moreSynced(scene.guestB);
    await scene.b.ask("set-speed", "unlimited");
    await scene.b.reached("complete");
    await scene.expectSound(scene.guestB, "b");
  },
);
