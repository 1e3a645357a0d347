/** What takes long because an image has much of something is done in turns, so that others are served meanwhile. */
import { afterEach, expect, test, vi } from "vitest";
import { checkQcow2 } from "../../../src/image/qcow2/check-qcow2.ts";
import { openQcow2 } from "../../../src/image/qcow2/open.ts";
import { checkQed } from "../../../src/image/qed/check-qed.ts";
import { openQed } from "../../../src/image/qed/open.ts";
import { ImageFile } from "../../../src/image/tables/image-file.ts";
import { Slots } from "../../../src/image/tables/slots.ts";
import { Turns } from "../../../src/image/tables/turns.ts";
import { FakeFiles } from "../../support/fake-files.ts";

const PATH = "/vm/large";
const ENTRY_BYTES = 8;
const COPIED = 1n << 63n;

afterEach(() => {
  vi.restoreAllMocks();
});

/** Turns that others have while `act` runs. */
async function turnsDuring(act: () => Promise<unknown>): Promise<number> {
  const pause = vi.spyOn(ImageFile.prototype, "pause");
  await act();
  const { length } = pause.mock.calls;
  pause.mockRestore();
  return length;
}

/** Clusters of 512 bytes; as many L2 tables as there are entries, all of them empty and holes of the file. */
function largeQcow2(entries: number, named: boolean): FakeFiles {
  const cluster = 512;
  const behind = 2 * cluster + entries * ENTRY_BYTES;
  const bytes = Buffer.alloc(behind);
  bytes.write("QFI\xfb", 0, "latin1");
  bytes.writeUInt32BE(3, 4);
  bytes.writeUInt32BE(Math.log2(cluster), 20);
  bytes.writeBigUInt64BE(BigInt((entries * cluster * cluster) / ENTRY_BYTES), 24);
  bytes.writeUInt32BE(entries, 36);
  bytes.writeBigUInt64BE(BigInt(2 * cluster), 40);
  bytes.writeBigUInt64BE(BigInt(cluster), 48);
  bytes.writeUInt32BE(1, 56);
  bytes.writeUInt32BE(4, 96);
  bytes.writeUInt32BE(104, 100);
  for (let i = 0; named && i < entries; i++) {
    bytes.writeBigUInt64BE(BigInt(behind + i * cluster) | COPIED, 2 * cluster + i * ENTRY_BYTES);
  }
  return files(bytes, behind + entries * cluster);
}

/** Clusters of 4 KiB, tables of 64 KiB. */
function largeQed(named: boolean): FakeFiles {
  const [cluster, tableClusters] = [4096, 16];
  const tableBytes = cluster * tableClusters;
  const entries = tableBytes / ENTRY_BYTES;
  const behind = cluster + tableBytes;
  const bytes = Buffer.alloc(behind);
  bytes.write("QED\0", 0, "latin1");
  bytes.writeUInt32LE(cluster, 4);
  bytes.writeUInt32LE(tableClusters, 8);
  bytes.writeUInt32LE(1, 12);
  bytes.writeBigUInt64LE(BigInt(cluster), 40);
  bytes.writeBigUInt64LE(BigInt(entries) * BigInt(entries * cluster), 48);
  for (let i = 0; named && i < entries; i++) {
    bytes.writeBigUInt64LE(BigInt(behind + i * tableBytes), cluster + i * ENTRY_BYTES);
  }
  return files(bytes, behind + entries * tableBytes);
}

function files(bytes: Buffer, sizeBytes: number): FakeFiles {
  const made = new FakeFiles();
  made.add(PATH, bytes).size = sizeBytes;
  return made;
}

test("a check of many qcow2 tables that are empty goes on in turns", async () => {
  const made = largeQcow2(2 ** 14, true);
  const turns = await turnsDuring(() => checkQcow2({ files: made }, { path: PATH }));
  // It takes 256 steps to see that a table is empty, and 65,536 of them are a turn.
  expect(turns).toBeGreaterThanOrEqual(2 ** 14 / 256);
});

test("a check of many QED tables that are empty goes on in turns", async () => {
  const made = largeQed(true);
  const turns = await turnsDuring(() => checkQed({ files: made }, { path: PATH }));
  expect(turns).toBeGreaterThanOrEqual(2 ** 13 / 256);
});

test("a request that reaches over many parts of a qcow2 is answered in turns", async () => {
  const made = largeQcow2(2 ** 16, false);
  await using image = await openQcow2({ files: made }, { path: PATH, readOnly: false });
  await image.read(0, Buffer.alloc(512));
  // Each L1 entry is a part of its own.
  const turns = await turnsDuring(() => image.writeZeroes(0, image.sizeBytes, { fastOnly: true }));
  expect(turns).toBeGreaterThanOrEqual(2 ** 16 / 2048);
});

test("a request that reaches over many parts of a QED is answered in turns", async () => {
  const made = largeQed(false);
  await using image = await openQed({ files: made }, { path: PATH, readOnly: false });
  await image.read(0, Buffer.alloc(512));
  const turns = await turnsDuring(() => image.writeZeroes(0, image.sizeBytes));
  expect(turns).toBeGreaterThanOrEqual(2 ** 13 / 2048);
});

test("a turn ends after so many steps, however they are counted", async () => {
  const made = files(Buffer.alloc(512), 512);
  const file = new ImageFile(await made.open({ path: PATH, writable: false }), 512);
  const turns = new Turns(file);
  let [steps, most] = [0, 0];
  for (const count of Array.from({ length: 10_000 }, (_, i) => (i % 3 === 0 ? 1 : 100))) {
    steps += count;
    most = Math.max(most, steps);
    if (!turns.over(count)) continue;
    await turns.next();
    steps = 0;
  }
  expect(most).toBeLessThan(65_536 + 100);
});

test("so many have a slot, the others wait for theirs in order, and a failure gives one back", async () => {
  const slots = new Slots(2);
  const log: string[] = [];
  const ends: (() => void)[] = [];
  const run = (name: string) =>
    slots.run(async () => {
      log.push(name);
      await new Promise<void>((resolve) => ends.push(resolve));
      if (name === "b") throw new Error("b has failed");
    });
  const all = Promise.allSettled(["a", "b", "c", "d"].map(run));
  expect(log).toEqual(["a", "b"]);
  ends[1]?.();
  await vi.waitFor(() => expect(log).toEqual(["a", "b", "c"]));
  ends[0]?.();
  ends[2]?.();
  await vi.waitFor(() => expect(log).toEqual(["a", "b", "c", "d"]));
  ends[3]?.();
  expect((await all).map(({ status }) => status)).toEqual(["fulfilled", "rejected", "fulfilled", "fulfilled"]);
  const again = Promise.all([run("e"), run("f")]);
  expect(log.slice(4)).toEqual(["e", "f"]);
  for (const end of ends) end();
  await again;
});
