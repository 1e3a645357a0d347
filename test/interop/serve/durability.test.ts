/**
 * What an acknowledgement is worth: a write survives the server's sudden end, a FLUSH or FUA has reached the disk (an
 * fdatasync of the image ran between request and reply), on whichever connection; and a failed sync is never forgotten.
 */
import { expect } from "vitest";
import { NbdHandle } from "../../support/libnbd.ts";
import { imageDifference, makeImage, pattern } from "../../support/patterns.ts";
import { runOk } from "../../support/run.ts";
import { type ServeProcess, startServe } from "../../support/serve-process.ts";
import { type SyncCall, straceSyncs, syncCalls, syncsDuring } from "../../support/sync-trace.ts";
import { type TempDir, tempDir } from "../../support/temp-dir.ts";
import { itWith } from "../../support/tools.ts";
import { KiB, MiB } from "./layout.ts";

const SIZE = 16 * MiB;
const FUA = 1;
const NEEDS = ["python3-libnbd", "strace"];

interface Traced extends AsyncDisposable {
  readonly image: string;
  readonly server: ServeProcess;
  /** The syncs of the image so far. */
  syncs(): SyncCall[];
}

/** A server whose syncs are traced. */
async function traced(inject?: string): Promise<Traced> {
  const folder: TempDir = tempDir();
  const image = folder.file("disk.img");
  const trace = folder.file("trace");
  makeImage(image, SIZE);
  const under = straceSyncs(trace, inject);
  const server = await startServe({ image, socket: folder.file("s"), under });
  return {
    image,
    server,
    syncs: () => syncCalls(trace, image),
    [Symbol.asyncDispose]: async () => {
      await server.kill();
      folder[Symbol.dispose]();
    },
  };
}

itWith(["python3-libnbd"], "kill -9: all that was acknowledged on any connection is in the file", async () => {
  using folder = tempDir();
  const image = folder.file("disk.img");
  makeImage(image, SIZE);
  await using server = await startServe({ image, socket: folder.file("s") });
  await using a = await NbdHandle.connect(server.uri);
  await using b = await NbdHandle.connect(server.uri);
  const regions = [{ offset: 0, length: SIZE, salt: 1 }];
  for (let i = 0; i < 40; i++) {
    const region = { offset: i * 400_009, length: [1, 513, 4096, 70_001][i % 4] as number, salt: 2 + i };
    regions.push(region);
    await (i % 2 ? a : b).call("pwrite", pattern(region.offset, region.length, region.salt), region.offset);
  }
  // What comes before a flush, and what comes after it.
  await b.call("flush");
  await a.call("zero", 300 * KiB + 5, 5 * MiB + 1);
  regions.push({ offset: 5 * MiB + 1, length: 300 * KiB + 5, salt: 0 });
  // Through another connection, before the end: what one wrote, the other reads.
  const last = regions[40] as { offset: number; length: number; salt: number };
  expect((await a.read(last.length, last.offset)).equals(pattern(last.offset, last.length, last.salt))).toBe(true);
  await server.kill();
  expect(imageDifference(image, SIZE, regions)).toBeUndefined();
});

itWith(NEEDS, "an fdatasync of the image runs between a FLUSH and its reply; without one, none does", async () => {
  await using vm = await traced();
  await using nbd = await NbdHandle.connect(vm.server.uri);
  const plain = await nbd.attempt("pwrite", pattern(0, 4 * KiB, 2), 0);
  const large = await nbd.attempt("pwrite", pattern(MiB, 3 * MiB, 2), MiB);
  const flush = await nbd.attempt("flush");
  const again = await nbd.attempt("flush");
  for (const outcome of [plain, large, flush, again]) expect(outcome.errno).toBe("OK");
  // If plain writes synced too, finding a sync during a FLUSH would prove nothing.
  expect(syncsDuring(vm.syncs(), plain)).toHaveLength(0);
  expect(syncsDuring(vm.syncs(), large)).toHaveLength(0);
  expect(syncsDuring(vm.syncs(), flush)).toHaveLength(1);
  expect(syncsDuring(vm.syncs(), again)).toHaveLength(1);
});

itWith(NEEDS, "every kind of FUA request is synced before its reply", async () => {
  await using vm = await traced();
  await using nbd = await NbdHandle.connect(vm.server.uri);
  for (const [method, ...args] of [
    ["pwrite", pattern(0, 512, 2), 0],
    ["pwrite", pattern(0, 4 * KiB + 1, 3), 77],
    ["pwrite", pattern(MiB, 3 * MiB, 2), MiB],
    ["zero", 64 * KiB, 5 * MiB],
    ["zero", 1, 6 * MiB + 1],
    ["trim", 64 * KiB, 7 * MiB],
  ] as const) {
    const outcome = await nbd.attempt(method, ...args, FUA);
    expect(outcome.errno).toBe("OK");
    expect(syncsDuring(vm.syncs(), outcome).length, `${method} at ${args[1]}`).toBeGreaterThan(0);
  }
});

itWith(NEEDS, "a FLUSH on one connection covers what another one wrote", async () => {
  await using vm = await traced();
  await using writer = await NbdHandle.connect(vm.server.uri);
  await using flusher = await NbdHandle.connect(vm.server.uri);
  expect(await flusher.call("can_multi_conn")).toBe(true);
  const write = await writer.attempt("pwrite", pattern(0, MiB, 2), 0);
  const flush = await flusher.attempt("flush");
  expect([write.errno, flush.errno]).toEqual(["OK", "OK"]);
  expect(syncsDuring(vm.syncs(), flush)).toHaveLength(1);
  expect(syncsDuring(vm.syncs(), write)).toHaveLength(0);
});

itWith(NEEDS, "a server that is told to stop syncs what was written before it goes", async () => {
  await using vm = await traced();
  await using nbd = await NbdHandle.connect(vm.server.uri);
  const write = await nbd.attempt("pwrite", pattern(0, MiB, 2), 0);
  await nbd[Symbol.asyncDispose]();
  expect(await vm.server.stop()).toBe(0);
  expect(vm.syncs().filter(({ startMs, result }) => result === "0" && startMs >= write.endMs)).not.toHaveLength(0);
});

itWith(
  [...NEEDS, "qemu-io"],
  "after one failed fdatasync every flush and write fails until the server is started anew",
  async () => {
    await using vm = await traced("fdatasync:error=EIO:when=1");
    await using nbd = await NbdHandle.connect(vm.server.uri);
    await using other = await NbdHandle.connect(vm.server.uri);
    expect(await nbd.errnoOf("pwrite", pattern(0, 512, 2), 0)).toBe("OK");
    expect(await nbd.errnoOf("flush")).toBe("EIO");
    expect(vm.syncs().map(({ result }) => result)).toEqual(["-1 EIO"]);
    // The kernel would call the next one a success: it must not be asked.
    for (const client of [nbd, other]) {
      expect(await client.errnoOf("flush")).toBe("EIO");
      expect(await client.errnoOf("pwrite", pattern(0, 512, 2), 0)).toBe("EIO");
      expect(await client.errnoOf("pwrite", pattern(0, 512, 2), 0, FUA)).toBe("EIO");
      expect(await client.errnoOf("zero", 512, 0)).toBe("EIO");
      expect((await client.read(512, 4096)).equals(pattern(4096, 512))).toBe(true);
    }
    expect(vm.syncs()).toHaveLength(1);
    await Promise.all([nbd, other].map((client) => client[Symbol.asyncDispose]()));
    expect(await vm.server.stop()).not.toBe(0);
    await using fresh = await startServe({ image: vm.image, socket: vm.server.socket });
    await runOk(["qemu-io", "-f", "raw", "-c", "write -f 0 4k", "-c", "flush", fresh.uri]);
  },
);
