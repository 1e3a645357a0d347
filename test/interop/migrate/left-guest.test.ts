/**
 * `source` ends, or its line does, while a guest is in between: QEMU here is done with it, or waits. Whoever comes after that
 * goes on, and in the end the guest is at one place, with its disk, and as it was: a guest that was paused stays so.
 */
import { expect } from "vitest";
import { type LineProcess, startLine } from "../../../tools/line/client.ts";
import { parseAddress } from "../../../tools/line/options.ts";
import { holdOpening, ONE_THREAD } from "../../support/hold-opening.ts";
import type { RunResult } from "../../support/run.ts";
import { drawn } from "../../support/seed.ts";
import { type TempDir, tempDir } from "../../support/temp-dir.ts";
import { itWith } from "../../support/tools.ts";
import { BareQemu } from "./bare-qemu.ts";
import { linkOf, type MigrationProcess, Rig } from "./rig.ts";

const TOOLS = ["qemu-system-x86_64", "strace"];
const WAIT = { timeout: 60_000, interval: 20 };
const MiB = 2 ** 20;

/** How the source ends. */
const ENDS = ["SIGTERM", "SIGKILL"] as const;

class Scene implements AsyncDisposable {
  readonly rig: Rig;
  readonly #folder: TempDir;
  readonly #stack = new AsyncDisposableStack();
  readonly #late: boolean;
  #link = "127.0.0.1:0";
  a!: MigrationProcess;
  b!: MigrationProcess;
  line!: LineProcess;
  guestA!: BareQemu;
  guestB!: BareQemu;

  private constructor(folder: TempDir, late: boolean) {
    this.#folder = folder;
    this.#late = late;
    this.rig = new Rig(folder);
  }

  /** A guest on A, and all that it takes to move it. */
  static async make(folder: TempDir, { late = true, paused = false } = {}): Promise<Scene> {
    const scene = new Scene(folder, late);
    const { rig } = scene;
    // Four minutes' worth: what is not complete can be given back.
    rig.makeDisks(4 * MiB, [{ offset: 0, length: 4 * MiB, salt: 3 }]);
    const local = { driver: "raw", file: { driver: "file", filename: rig.image("a") } };
    if (late) await scene.#startA(local);
    await scene.startSource();
    if (!late) await scene.#startA(remote(rig.socket("a")));
    scene.line = scene.#stack.use(await startLine({ target: parseAddress(scene.#link) }));
    await scene.startDest();
    await scene.startB();
    await scene.guestA.execute("cont");
    if (paused) await scene.guestA.execute("stop");
    await scene.a.reached("ready");
    return scene;
  }

  async startSource(): Promise<void> {
    const flags = [...(this.#late ? ["--late-open"] : []), "--qmp", this.#folder.file("src.qmp")];
    this.a = this.#stack.use(
      await this.rig.source({ flags, ownSocket: !this.#late, link: this.#link, env: ONE_THREAD }),
    );
    this.#link = await linkOf(this.a);
  }

  async startDest(): Promise<void> {
    const { address } = this.line;
    const link = address.kind === "tcp" ? `${address.host}:${address.port}` : "";
    const flags = ["--qmp", this.#folder.file("dst.qmp"), "--rate", "16K"];
    this.b = this.#stack.use(await this.rig.dest(link, { flags }));
  }

  async startB(): Promise<void> {
    const monitor = this.#folder.file("dst.qmp");
    this.guestB = this.#stack.use(
      await BareQemu.start({ monitor, disk: remote(this.rig.socket("b")), incoming: true }),
    );
  }

  async #startA(disk: object): Promise<void> {
    const monitor = this.#folder.file("src.qmp");
    this.guestA = this.#stack.use(await BareQemu.start({ monitor, disk }));
  }

  /** The order, which may come to nothing when the source ends. */
  switchover(): Promise<RunResult> {
    return this.a.tryAsk("switchover", "--wait");
  }

  /** Ends the source where it waits to open `path`. */
  async endWhileOpening(path: string, phase: string, how: (typeof ENDS)[number]): Promise<void> {
    await using held = await holdOpening(this.a, path);
    const lost = this.switchover();
    await expect.poll(() => guestPhase(this.a), WAIT).toBe(phase);
    const ended = how === "SIGTERM" ? this.a.stop() : this.a.kill();
    // A process is not gone before who traces it has let go of it; but it is to have heard of its end.
    if (how === "SIGTERM") await expect.poll(async () => (await this.a.status()).state, WAIT).toBe("stopping");
    await held[Symbol.asyncDispose]();
    await Promise.all([ended, lost]);
  }

  /** Of the guest on A, and on B. QEMU says that it has completed a moment before it takes its last state. */
  async expectStates(...states: readonly [a: string, b: string]): Promise<void> {
    const now = (): Promise<string[]> => Promise.all([this.guestA.status(), this.guestB.status()]);
    await expect.poll(now, WAIT).toEqual(states);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#stack.disposeAsync();
  }
}

/** Requests wait for a server that was started again. */
function remote(path: string): object {
  return { driver: "nbd", server: { type: "unix", path }, export: "vda", "reconnect-delay": 60 };
}

async function guestPhase(side: MigrationProcess): Promise<string | undefined> {
  return (await side.status()).migration?.guest?.phase;
}

/** Each takes some seconds: while developing one of them is tried. */
const TRIALS: [title: string, body: () => Promise<void>][] = [];

function trial(title: string, body: () => Promise<void>): void {
  TRIALS.push([title, body]);
}

for (const how of ENDS) {
  trial(`${how} between QEMU's end and the grant: the next source goes on, and the guest runs on B alone`, async () => {
    using folder = tempDir();
    await using scene = await Scene.make(folder);
    await scene.endWhileOpening(scene.rig.image("a"), "starting", how);
    await scene.expectStates("postmigrate", "paused");
    await scene.startSource();
    await scene.a.reached("ready");
    const { migration, next } = await scene.a.status();
    expect(migration).toMatchObject({ owner: "source", guest: { lastError: expect.stringContaining("switchover") } });
    expect(next).toBe("blockferry switchover");
    {
      // The line goes in the same place, and comes back.
      await using held = await holdOpening(scene.a, scene.rig.image("a"));
      const moved = scene.switchover();
      await expect.poll(() => guestPhase(scene.a), WAIT).toBe("starting");
      await scene.line.refuse();
      await scene.line.cutNow();
      await expect.poll(async () => (await scene.a.status()).migration?.shown, WAIT).toBe("disconnected");
      await scene.expectStates("postmigrate", "paused");
      await scene.line.refuse(false);
      await expect.poll(async () => (await scene.a.status()).migration?.shown, WAIT).toBe("ready");
      await held[Symbol.asyncDispose]();
      expect(await moved).toMatchObject({ status: 0, stdout: expect.stringContaining("the guest runs there") });
    }
    await scene.expectStates("postmigrate", "running");
    // Whoever asks again is told so, and changes nothing.
    await scene.guestB.execute("stop");
    await scene.a.kill();
    await scene.startSource();
    expect((await scene.switchover()).status).toBe(0);
    await scene.expectStates("postmigrate", "paused");
  });
}

for (const asWell of ["", " with its sidecar"] as const) {
  trial(`a copy on B that is gone${asWell} when the next source comes leaves the guest on A`, async () => {
    using folder = tempDir();
    await using scene = await Scene.make(folder);
    await scene.endWhileOpening(scene.rig.image("a"), "starting", "SIGKILL");
    await scene.guestB[Symbol.asyncDispose]();
    await scene.startSource();
    await scene.a.reached("ready");
    if (asWell !== "") {
      await scene.b.kill();
      await scene.startDest();
    }
    await scene.startB();
    const { status, stderr } = await scene.switchover();
    expect(stderr).toContain("the guest goes on here");
    expect(status).toBe(2);
    await scene.expectStates("running", "inmigrate");
    expect((await scene.switchover()).stdout).toContain("the guest runs there");
    await scene.expectStates("postmigrate", "running");
  });
}

trial("a guest that was paused stays so, whoever was started again while it moved", async () => {
  using folder = tempDir();
  await using scene = await Scene.make(folder, { paused: true });
  await scene.endWhileOpening(scene.rig.image("a"), "starting", "SIGKILL");
  await scene.startSource();
  await scene.a.reached("ready");
  {
    await using held = await holdOpening(scene.a, scene.rig.image("a"));
    const lost = scene.switchover();
    await expect.poll(() => guestPhase(scene.a), WAIT).toBe("starting");
    // It hears no order; so it is clear when the sidecars end: the disks are B's, and the guest has not been started.
    scene.guestB.signal("SIGSTOP");
    await held[Symbol.asyncDispose]();
    await scene.b.reached("active");
    await Promise.all([scene.a.kill(), scene.b.kill(), lost]);
  }
  scene.guestB.signal("SIGCONT");
  await scene.startSource();
  await scene.startDest();
  await scene.b.reached("active");
  expect(await scene.switchover()).toMatchObject({ status: 0, stdout: expect.stringContaining("paused") });
  await scene.expectStates("postmigrate", "paused");
});

for (const how of ENDS) {
  trial(`${how} while QEMU waits for its disks to go: the next source lets the guest go on here`, async () => {
    using folder = tempDir();
    await using scene = await Scene.make(folder, { late: false });
    // The first of the fences.
    await scene.endWhileOpening(`${scene.rig.image("a")}.owner.new`, "handing-over", how);
    await scene.startSource();
    await scene.a.reached("ready");
    const { status, stderr } = await scene.switchover();
    expect(stderr).toContain("the guest is here (running)");
    expect(status).toBe(2);
    expect((await scene.a.status()).migration?.owner).toBe("source");
    expect(await scene.guestA.status()).toBe("running");
  });
}

trial("a guest that somebody has let go on here is not let run on B as well, and gets its disks back", async () => {
  using folder = tempDir();
  await using scene = await Scene.make(folder, { late: false, paused: true });
  {
    // It has come; that is about to be noted.
    await using held = await holdOpening(scene.a, folder.file("a/state/guest.record.new"), 2);
    const lost = scene.switchover();
    await expect.poll(() => guestPhase(scene.b), WAIT).toBe("started");
    const killed = scene.a.kill();
    await held[Symbol.asyncDispose]();
    await Promise.all([killed, lost]);
  }
  await scene.expectStates("postmigrate", "paused");
  await scene.guestA.execute("cont");
  await scene.startSource();
  const refused = await scene.switchover();
  expect(refused.stderr).toContain("let the guest go on here");
  expect(refused.stderr).toContain("end one of them");
  expect(refused.status).toBe(75);
  expect((await scene.a.status()).migration).toMatchObject({ owner: "destination", destinationWrote: false });
  await scene.expectStates("running", "paused");
  // Another process does not know that it was ever to run over there, and nobody has written to its disk.
  await scene.b.kill();
  await scene.startDest();
  await scene.b.reached("active");
  const { status, stderr } = await scene.switchover();
  expect(stderr).toContain("has its disks back");
  expect(status).toBe(2);
  await scene.guestB.ended;
  expect((await scene.a.status()).migration?.owner).toBe("source");
  expect(await scene.guestA.status()).toBe("running");
});

for (const [title, body] of drawn(TRIALS, 1)) itWith(TOOLS, title, body);
