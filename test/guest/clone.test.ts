/** Guests on the export of a clone: what happens to the source, and to the clone itself, is no matter to them. */
import { mkdirSync } from "node:fs";
import { expect } from "vitest";
import { LossPause } from "../../src/qmp/loss-pause.ts";
import { placeIn, untilDisk } from "../support/clone-checks.ts";
import { type CloneProcess, startClone } from "../support/clone-process.ts";
import { type Guest, itBoots, startGuest } from "../support/guest.ts";
import { expectSoundDisk, filledDisk } from "../support/guest-disk.ts";
import { nbdkitIn, type Peer } from "../support/peers.ts";
import { runOk } from "../support/run.ts";
import { Prng, runSeed } from "../support/seed.ts";
import { TempDir, tempDir } from "../support/temp-dir.ts";

const FILES = 120;
/** So slow that most of it is missing for as long as a test likes. */
const SLOW = "--rate=64K";

/** A disk with files on it, behind an nbdkit that can go, and come back at its address. */
class Source {
  readonly disk: string;
  readonly uri: string;
  readonly #folder: TempDir;

  static async make(folder: TempDir): Promise<Source> {
    const source = new Source(folder);
    const seed = runSeed();
    await filledDisk(source.disk, new Prng(seed, "guest files"), { files: FILES });
    return source;
  }

  private constructor(folder: TempDir) {
    mkdirSync(folder.file("src"));
    this.#folder = new TempDir(folder.file("src"));
    this.disk = this.#folder.file("disk");
    this.uri = `nbd+unix:///?socket=${this.#folder.file("nbd")}`;
  }

  start(): Promise<Peer> {
    return nbdkitIn(this.#folder, "-r", "file", this.disk);
  }
}

/** Resolves when the guest's counter has gone on for a second, and no file was read back meanwhile. */
async function readsStall({ log }: Guest): Promise<void> {
  let ticks = 0;
  await log.next("a second without a file read", ({ kind }) => {
    if (kind === "verified") ticks = 0;
    else if (kind === "tick") ticks += 1;
    return ticks >= 10;
  });
}

async function endsSound(guest: Guest, clone: CloneProcess, image: string): Promise<void> {
  await clone.call("set-speed", { bytesPerSecond: null });
  await clone.hydrated();
  await guest.verifyAll(["vda"]);
  await guest.finish();
  expect(await clone.stop(), clone.output).toBe(0);
  expect(guest.log.complaints()).toEqual([]);
  expect(guest.log.of("ready")[0]).toMatchObject({ files: FILES });
  await expectSoundDisk(image, "vda", guest.log);
}

itBoots(
  ["nbdkit"],
  "a guest on a clone whose source is killed and comes back, and then the clone too, sees nothing",
  async () => {
    using folder = tempDir();
    const source = await Source.make(folder);
    const place = placeIn(folder, source.uri);
    const before = await runOk(["md5sum", source.disk]);
    await using first = await source.start();
    await using clone = await startClone({ ...place, flags: [SLOW] });
    await using guest = await startGuest({ folder, disks: [{ socket: place.socket, reconnectSeconds: 100 }] });
    await Promise.all([guest.log.more("verified", 5), guest.log.more("synced", 3)]);

    await first.kill();
    await untilDisk(clone, (disk) => disk.source?.state === "disconnected");
    await readsStall(guest);
    await using _second = await source.start();
    await guest.log.more("verified", 5);

    await clone.kill();
    await readsStall(guest);
    await using again = await startClone({ ...place, flags: [SLOW] });
    await Promise.all([guest.log.more("verified", 5), guest.log.more("synced", 3)]);
    const { missingBytes } = await untilDisk(again, () => true);
    expect(missingBytes, "the test was quicker than the clone").toBeGreaterThan(0);
    await endsSound(guest, again, place.image);
    expect(await runOk(["md5sum", source.disk])).toBe(before);
  },
);

itBoots(
  ["nbdkit"],
  "a guest that is stopped while the source is away goes on when it is back, and sees no error",
  async () => {
    using folder = tempDir();
    const source = await Source.make(folder);
    const place = placeIn(folder, source.uri);
    await using first = await source.start();
    const flags = [SLOW, "--on-source-loss=eio", "--source-loss-deadline=500ms"];
    await using clone = await startClone({ ...place, flags });
    await using guest = await startGuest({ folder, disks: [{ socket: place.socket, onError: "stop" }] });
    await guest.log.more("verified", 5);
    const qmp = await guest.qmp();
    const reported: string[] = [];
    using pause = new LossPause(qmp, { onReported: (device) => reported.push(device) });

    await first.kill();
    await expect.poll(async () => (await qmp.execute("query-status")).status, { timeout: 20_000 }).toBe("io-error");
    expect(pause.stops).toBeGreaterThan(0);
    const stoppedAt = guest.log.of("tick").length;
    await using _second = await source.start();
    await untilDisk(clone, (disk) => disk.source?.state === "connected");
    expect(guest.log.of("tick")).toHaveLength(stoppedAt);
    expect(await pause.sourceIsBack()).toEqual({ running: true, status: "running" });
    await Promise.all([guest.log.more("verified", 5), guest.log.more("synced", 3)]);
    await endsSound(guest, clone, place.image);
    expect(reported).toEqual([]);
  },
);
