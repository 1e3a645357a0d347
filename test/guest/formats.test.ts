/** Real guests whose disks are images with tables move, and each disk arrives in another format than it had. */
import { rmSync } from "node:fs";
import { expect } from "vitest";
import { linkOf, type MigrationProcess, Rig, type Side } from "../interop/migrate/rig.ts";
import { type Guest, type GuestDisk, type GuestOptions, itBoots, startGuest } from "../support/guest.ts";
import { expectSoundDisk, filledDisk } from "../support/guest-disk.ts";
import { run, runOk } from "../support/run.ts";
import { Prng, runSeed } from "../support/seed.ts";
import { type TempDir, tempDir } from "../support/temp-dir.ts";

const DISKS = ["vda", "vdb"] as const;
const QEMU_IMG_LEAKS = 3;

type Format = "raw" | "qcow2" | "qed";

interface SceneOptions {
  /** Of vda and vdb, at the source and at the destination. */
  readonly formats: { readonly a: readonly [Format, Format]; readonly b: readonly [Format, Format] };
  /** The guest's QEMU has the images open itself. */
  readonly late?: boolean;
  readonly destFlags?: readonly string[];
}

/** Images named after their formats. */
class FormatRig extends Rig {
  readonly #formats: SceneOptions["formats"];

  constructor(folder: TempDir, formats: SceneOptions["formats"]) {
    super(folder, DISKS);
    this.#formats = formats;
  }

  format(side: Side, disk: string): Format {
    return this.#formats[side === "a" ? "a" : "b"][disk === "vda" ? 0 : 1];
  }

  override image(side: Side, disk = "vda"): string {
    return super.image(side, disk, `.${this.format(side, disk)}`);
  }
}

/** Two hosts, and a QEMU on each: one with a guest at work, one that waits for it. */
class Scene implements AsyncDisposable {
  readonly rig: FormatRig;
  readonly #folder: TempDir;
  readonly #options: SceneOptions;
  readonly #stack = new AsyncDisposableStack();
  a!: MigrationProcess;
  b!: MigrationProcess;
  guestA!: Guest;
  guestB!: Guest;

  constructor(folder: TempDir, options: SceneOptions) {
    this.#folder = folder;
    this.#options = options;
    this.rig = new FormatRig(folder, options.formats);
  }

  async prepare(): Promise<void> {
    const { late = false } = this.#options;
    for (const disk of DISKS) await this.#makeDisk(disk);
    if (!late) this.a = await this.#startSource([]);
    this.guestA = await this.#guest("src", { disks: late ? this.#files() : this.#served("a") });
    const working = this.moreSynced(this.guestA);
    // By then the images are in use, and not what they were when they were made.
    if (late) {
      await working;
      this.a = await this.#startSource(["--late-open"]);
    }
    await this.startDest();
    await this.startIncoming();
    await working;
  }

  async startDest(): Promise<void> {
    const flags = ["--qmp", this.#folder.file("dst.qmp"), ...(this.#options.destFlags ?? [])];
    this.b = this.#stack.use(await this.rig.dest(await linkOf(this.a), { flags }));
  }

  async startIncoming(): Promise<void> {
    // One that has ended leaves its socket.
    rmSync(this.#folder.file("dst.qmp"), { force: true });
    this.guestB = await this.#guest("dst", { disks: this.#served("b"), incoming: "defer", log: this.guestA.log });
    (await this.guestB.qmp()).close();
  }

  moreSynced(guest: Guest): Promise<unknown> {
    return Promise.all(DISKS.map((disk) => guest.log.more("synced", 3, disk)));
  }

  /** Everything is at the destination, the source is gone, and nothing of it is missed. */
  async expectArrived({ leaks = false } = {}): Promise<void> {
    const { a, b, guestB, rig } = this;
    await b.ask("set-speed", "unlimited");
    await b.reached("complete");
    await a.kill();
    for (const disk of DISKS) rmSync(rig.image("a", disk));
    await guestB.verifyAll(DISKS);
    await guestB.finish();
    expect(guestB.log.complaints()).toEqual([]);
    expect(await b.stop()).toBe(0);
    for (const disk of DISKS) {
      const [image, format] = [rig.image("b", disk), rig.format("b", disk)];
      const raw = this.#folder.file(`${disk}.arrived`);
      if (format !== "raw") await expectWhole(image, format, leaks);
      await runOk(["qemu-img", "convert", "-f", format, "-O", "raw", image, raw]);
      await expectSoundDisk(raw, disk, guestB.log);
    }
  }

  async #makeDisk(disk: string): Promise<void> {
    const raw = this.#folder.file(`${disk}.new`);
    const [image, format] = [this.rig.image("a", disk), this.rig.format("a", disk)];
    await filledDisk(raw, new Prng(runSeed(), disk), { files: 40 });
    await runOk(["qemu-img", "convert", "-f", "raw", "-O", format, raw, image]);
  }

  async #startSource(flags: readonly string[]): Promise<MigrationProcess> {
    const ownSocket = this.#options.late !== true;
    return this.#stack.use(
      await this.rig.source({ flags: ["--qmp", this.#folder.file("src.qmp"), ...flags], ownSocket }),
    );
  }

  async #guest(name: string, options: Omit<GuestOptions, "folder" | "name">): Promise<Guest> {
    return this.#stack.use(await startGuest({ folder: this.#folder, name, ...options }));
  }

  #files(): GuestDisk[] {
    return DISKS.map((disk) => ({ file: this.rig.image("a", disk), format: this.rig.format("a", disk) }));
  }

  #served(side: "a" | "b"): GuestDisk[] {
    return DISKS.map((exportName) => ({ socket: this.rig.socket(side), exportName, reconnectSeconds: 20 }));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#stack.disposeAsync();
  }
}

/** QEMU finds nothing wrong with the image, and nothing below it. */
async function expectWhole(image: string, format: Format, leaks: boolean): Promise<void> {
  const check = await run(["qemu-img", "check", "-f", format, image]);
  expect(leaks ? [0, QEMU_IMG_LEAKS] : [0], check.stdout + check.stderr).toContain(check.status);
  const info = JSON.parse(await runOk(["qemu-img", "info", "-f", format, "--output=json", image])) as object;
  expect(info).not.toHaveProperty("backing-filename");
  expect(info).not.toHaveProperty("dirty-flag", true);
}

const CROSSED = { a: ["qcow2", "qed"], b: ["qed", "qcow2"] } as const;

itBoots(["qemu-img"], "a qcow2 disk arrives as QED and a QED disk as qcow2, under a guest at work", async () => {
  using folder = tempDir();
  await using scene = new Scene(folder, { formats: CROSSED, destFlags: ["--rate", "1M"] });
  await scene.prepare();
  expect(await scene.a.ask("switchover", "--wait")).toContain("the guest runs there");
  await scene.guestA.kill();
  await scene.moreSynced(scene.guestB);
  await scene.expectArrived();
});

itBoots(["qemu-img"], "the same with a destination that is killed under the guest and started again", async () => {
  using folder = tempDir();
  await using scene = new Scene(folder, { formats: CROSSED, destFlags: ["--mode", "postcopy", "--rate", "1M"] });
  await scene.prepare();
  expect(await scene.b.ask("switchover", "--wait")).toContain("the destination has the disks");
  await scene.guestA.kill();
  await scene.moreSynced(scene.guestB);
  await scene.b.kill();
  await scene.startDest();
  await scene.moreSynced(scene.guestB);
  // What was reserved when it died is lost space.
  await scene.expectArrived({ leaks: true });
});

itBoots(["qemu-img"], "images that QEMU itself has open move as it left them, whatever they were before", async () => {
  using folder = tempDir();
  await using scene = new Scene(folder, { formats: CROSSED, late: true, destFlags: ["--rate", "1M"] });
  await scene.prepare();
  expect(await scene.a.ask("switchover", "--wait")).toContain("the guest runs there");
  await scene.guestA.kill();
  await scene.moreSynced(scene.guestB);
  await scene.expectArrived();
});
