/**
 * Guests that move from one QEMU to another by our choreography. Both QEMUs use the same servers: what is tried here is
 * QEMU's part, and ours in it, not the disks' move.
 */
import { once } from "node:events";
import { existsSync, rmSync } from "node:fs";
import { createServer, type Socket } from "node:net";
import { expect } from "vitest";
import type { QmpClient } from "../../src/qmp/client.ts";
import { type GateResult, runDestination } from "../../src/qmp/destination.ts";
import { QmpError } from "../../src/qmp/errors.ts";
import { type HandOverResult, SourceChoreography } from "../../src/qmp/source.ts";
import type { SourceOutcome, SourcePhase } from "../../src/qmp/source-states.ts";
import { type Guest, type GuestDisk, itBoots, startGuest } from "../support/guest.ts";
import { emptyDisk, expectSoundDisk } from "../support/guest-disk.ts";
import { qemuNbd } from "../support/peers.ts";
import { startServe } from "../support/serve-process.ts";
import { type TempDir, tempDir } from "../support/temp-dir.ts";

const GIVEN: HandOverResult = { kind: "given" };

/** A guest that writes, a QEMU that waits for it, and both their monitors. */
class Move implements AsyncDisposable {
  readonly source: Guest;
  readonly destination: Guest;
  readonly sourceQmp: QmpClient;
  readonly destinationQmp: QmpClient;
  readonly #uri: string;

  static async prepare(folder: TempDir, disks: readonly GuestDisk[]): Promise<Move> {
    await using stack = new AsyncDisposableStack();
    const uri = `unix:${folder.file("ram")}`;
    const source = stack.use(await startGuest({ folder, name: "src", disks }));
    const { log } = source;
    const ready = Promise.all([log.more("synced", 3, "vda"), log.more("synced", 3, "vdb")]);
    const destination = stack.use(await startGuest({ folder, name: "dst", disks, incoming: uri, log }));
    const clients = [await source.qmp(), await destination.qmp()] as const;
    await ready;
    stack.move();
    return new Move([source, destination], clients, uri);
  }

  private constructor(guests: readonly [Guest, Guest], clients: readonly [QmpClient, QmpClient], uri: string) {
    [this.source, this.destination] = guests;
    [this.sourceQmp, this.destinationQmp] = clients;
    this.#uri = uri;
  }

  run(handOver: () => Promise<HandOverResult>, onProgress?: (phase: SourcePhase) => void): Promise<SourceOutcome> {
    const options = { client: this.sourceQmp, handOver: { handOver }, ...(onProgress && { onProgress }) };
    return new SourceChoreography(options).run(this.#uri);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all([this.source.kill(), this.destination.kill()]);
  }
}

/** Two disks, each behind one server that both QEMUs use. */
async function twoDisks(folder: TempDir) {
  await using stack = new AsyncDisposableStack();
  const image = folder.file("vda.raw");
  emptyDisk(image);
  const serve = stack.use(await startServe({ image, socket: folder.file("a") }));
  const peer = stack.use(await qemuNbd((path) => emptyDisk(path), "--discard=unmap"));
  const address = peer.address as { path: string };
  const images = { vda: image, vdb: peer.folder.file("disk.img") };
  const disks: readonly GuestDisk[] = [{ socket: serve.socket }, { socket: address.path }];
  const check = async (guest: Guest): Promise<void> => {
    await guest.finish();
    await serve.stop();
    await peer.kill();
    expect(guest.log.complaints()).toEqual([]);
    await expectSoundDisk(images.vda, "vda", guest.log);
    await expectSoundDisk(images.vdb, "vdb", guest.log);
  };
  const rest = stack.move();
  return { disks, check, [Symbol.asyncDispose]: () => rest.disposeAsync() };
}

/** A listener that reads and does not answer. */
async function sinkAt(path: string): Promise<AsyncDisposable> {
  const sockets = new Set<Socket>();
  const server = createServer((socket) => {
    sockets.add(socket.resume());
    socket.on("error", () => undefined);
  });
  await once(server.listen(path), "listening");
  const dispose = async (): Promise<void> => {
    for (const socket of sockets) socket.destroy();
    await new Promise((resolve) => server.close(resolve));
  };
  return { [Symbol.asyncDispose]: dispose };
}

itBoots(["qemu-nbd"], "a guest with two disks moves while it writes, and its counter goes on", async () => {
  using folder = tempDir();
  await using served = await twoDisks(folder);
  await using move = await Move.prepare(folder, served.disks);
  const { source, destination } = move;
  const completed = Promise.withResolvers<GateResult>();
  let inHandOver = 0;
  const arriving = runDestination({ client: move.destinationQmp, gate: { mayStart: () => completed.promise } });

  const outcome = await move.run(async () => {
    // The guest stands still, and its disks are quiet: this is the instant for them to go.
    expect((await move.sourceQmp.execute("query-status")).status).toBe("finish-migrate");
    inHandOver = source.log.of("tick").length;
    return GIVEN;
  });
  expect(outcome).toMatchObject({ kind: "completed", guestWasRunning: true });
  expect(source.log.of("tick")).toHaveLength(inHandOver);
  const { stoppedMs = 0, endedMs } = outcome.times;
  console.log(`the guest stood still for ${Math.round(endedMs - stoppedMs)} ms until its source had completed`);

  completed.resolve({ kind: "start", guestWasRunning: true });
  expect(await arriving).toMatchObject({ kind: "started", guest: { status: "running" } });
  expect((await move.sourceQmp.execute("query-status")).status).toBe("postmigrate");
  await source.kill();
  await Promise.all([destination.log.more("synced", 5, "vda"), destination.log.more("synced", 5, "vdb")]);
  await destination.verifyAll(["vda", "vdb"]);
  await served.check(destination);
});

for (const instant of ["before", "after"] as const) {
  itBoots(
    ["qemu-nbd"],
    `a destination that dies just ${instant} migrate-continue: the source's guest runs on, and that is told`,
    async () => {
      using folder = tempDir();
      await using served = await twoDisks(folder);
      await using move = await Move.prepare(folder, served.disks);
      const { source, destination } = move;
      const mayStart = (): Promise<never> => Promise.reject(new Error("it never arrived"));
      const arriving = runDestination({ client: move.destinationQmp, gate: { mayStart } });
      const handOver = async (): Promise<HandOverResult> => {
        if (instant === "before") await destination.kill();
        return GIVEN;
      };
      const outcome = await move.run(handOver, (phase) => {
        // The command is sent in this turn of the event loop.
        if (phase === "finishing") setImmediate(() => void destination.kill());
      });
      expect(outcome).toMatchObject({ kind: "stranded", guest: { running: true } });
      expect(await arriving).toMatchObject({ kind: "failed", reason: { code: "closed" } });
      await Promise.all([source.log.more("synced", 3, "vda"), source.log.more("synced", 3, "vdb")]);
      await source.verifyAll(["vda", "vdb"]);
      // Nothing of it is left: the same guest could be migrated by anybody.
      const capabilities = await move.sourceQmp.execute("query-migrate-capabilities");
      expect(capabilities.filter(({ state }) => state)).toEqual([]);
      await served.check(source);
    },
  );
}

itBoots(
  [],
  "a destination that falls silent after the hand-over does not hold the guest for ever: it can be cancelled",
  async () => {
    using folder = tempDir();
    emptyDisk(folder.file("vda.raw"));
    await using guest = await startGuest({ folder, disks: [{ file: folder.file("vda.raw") }] });
    // It takes everything, as a tunnel would, and never says a word.
    await using _sink = await sinkAt(folder.file("ram"));
    await guest.log.more("synced", 3);
    const client = await guest.qmp();
    const move: SourceChoreography = new SourceChoreography({
      client,
      handOver: { handOver: async () => GIVEN },
      onProgress: (_phase, info) => {
        if (info?.status === "device" && info.ram?.remaining === 0) move.cancel();
      },
    });
    expect(await move.run(`unix:${folder.file("ram")}`)).toMatchObject({ kind: "stranded", guest: { running: true } });
    await guest.log.more("synced", 3);
    await guest.finish();
    expect(guest.log.complaints()).toEqual([]);
    await expectSoundDisk(folder.file("vda.raw"), "vda", guest.log);
  },
);

itBoots(["qemu-nbd"], "disks that are kept cancel the migration, and the next one succeeds", async () => {
  using folder = tempDir();
  await using served = await twoDisks(folder);
  await using move = await Move.prepare(folder, served.disks);
  const { source } = move;
  const reason = new Error("the destination has no room");
  const kept = await move.run(async () => ({ kind: "kept", reason }));
  expect(kept).toMatchObject({ kind: "kept", reason, guest: { running: true } });
  await source.log.more("synced", 2, "vda");
  await move.destination.kill();
  rmSync(folder.file("ram"), { force: true });

  const { log } = source;
  await using again = await startGuest({ folder, name: "dst2", disks: served.disks, incoming: "defer", log });
  using qmp = await again.qmp();
  const completed = Promise.withResolvers<GateResult>();
  const arriving = runDestination({
    client: qmp,
    gate: { mayStart: () => completed.promise },
    incomingUri: `unix:${folder.file("ram")}`,
  });
  await expect.poll(() => existsSync(folder.file("ram"))).toBe(true);
  expect(await move.run(async () => GIVEN)).toMatchObject({ kind: "completed" });
  completed.resolve({ kind: "start", guestWasRunning: true });
  expect(await arriving).toMatchObject({ kind: "started" });
  await again.log.more("synced", 3, "vdb");
  await served.check(again);
});

itBoots([], "a monitor that somebody has is said to be taken", async () => {
  using folder = tempDir();
  emptyDisk(folder.file("vda.raw"));
  await using guest = await startGuest({ folder, disks: [{ file: folder.file("vda.raw") }] });
  const first = await guest.qmp();
  const others = await Promise.all([1, 2, 3].map(() => guest.qmp().catch((error: unknown) => error)));
  for (const error of others) {
    expect(error).toBeInstanceOf(QmpError);
    expect(error).toMatchObject({ code: "taken" });
  }
  first.close();
  using second = await guest.qmp();
  expect((await second.execute("query-status")).running).toBe(true);
});
