/** Our client in front of the newer servers: QEMU 10 has extended headers; nbdkit 1.42 may have them or not. */
import { expect, test } from "vitest";
import { makeImage, pattern } from "../support/patterns.ts";
import { nbdkit, type Peer, qemuNbd } from "../support/peers.ts";
import { runOk } from "../support/run.ts";
import { tempDir } from "../support/temp-dir.ts";

const MiB = 2 ** 20;
const GiB = 2 ** 30;
const SIZE = 24 * GiB;
const DATA_AT = [0, 4 * GiB - MiB, 13 * GiB];
const REGIONS = DATA_AT.map((offset, i) => ({ offset, length: 2 * MiB, salt: i + 1 }));

async function theirDialect(peer: Peer): Promise<string> {
  const socket = peer.folder.file("nbd");
  const said = await runOk(["nbdinfo", `nbd+unix:///?socket=${socket}`]);
  return /using (\w+) packets/.exec(said)?.[1] ?? said;
}

/** What [offset, offset + length) is made of, however many replies that takes; and how many it took. */
async function mapOf(peer: Peer): Promise<{ holes: number[]; questions: number }> {
  await using client = await peer.open();
  const holes: number[] = [];
  let questions = 0;
  for (let at = 0; at < SIZE; questions++) {
    for (const { length, hole } of await client.extents(at, SIZE - at, 100)) {
      if (hole) holes.push(length);
      at += length;
    }
  }
  return { holes, questions };
}

test("with qemu-nbd 10 we agree on extended headers, and need one question for a map of 24 GiB", async () => {
  await using peer = await qemuNbd((image) => makeImage(image, SIZE, REGIONS), "--discard=unmap");
  expect(await theirDialect(peer)).toBe("extended");
  {
    await using client = await peer.open();
    expect(client.dialect).toBe("extended");
  }
  const { holes, questions } = await mapOf(peer);
  expect(holes).toEqual([4 * GiB - 3 * MiB, 9 * GiB - MiB, 11 * GiB - 2 * MiB]);
  expect(questions).toBe(1);
});

test("with qemu-nbd 10, writes, zeroes and discards beyond and across 4 GiB come out right", async () => {
  await using peer = await qemuNbd((image) => makeImage(image, SIZE, REGIONS), "--discard=unmap");
  await using client = await peer.open();
  const written = pattern(20 * GiB + 5, 3 * MiB, 7);
  await client.write(20 * GiB + 5, written, { fua: true });
  await client.writeZeroes(3 * GiB, 6 * GiB);
  await client.discard(12 * GiB, 6 * GiB);
  await client.flush();
  const into = Buffer.alloc(3 * MiB);
  await client.read(20 * GiB + 5, into);
  expect(into.equals(written)).toBe(true);
  const zero = Buffer.alloc(2 * MiB);
  const found = Buffer.alloc(2 * MiB, 1);
  for (const offset of [4 * GiB - MiB, 13 * GiB]) {
    await client.read(offset, found);
    expect(found.equals(zero), `at ${offset}`).toBe(true);
  }
  await client.read(0, found);
  expect(found.equals(pattern(0, 2 * MiB, 1))).toBe(true);
});

test("with nbdkit 1.42 we speak the best that it offers, and map, read and write the same", async () => {
  using folder = tempDir();
  const image = folder.file("disk.img");
  makeImage(image, SIZE, REGIONS);
  await using peer = await nbdkit("file", image);
  await using client = await peer.open();
  expect(client.dialect).toBe(await theirDialect(peer));
  const { holes } = await mapOf(peer);
  expect(holes.reduce((sum, length) => sum + length, 0)).toBe(SIZE - 6 * MiB);
  await client.writeZeroes(3 * GiB, 6 * GiB);
  const found = Buffer.alloc(2 * MiB, 1);
  await client.read(4 * GiB - MiB, found);
  expect(found.equals(Buffer.alloc(2 * MiB))).toBe(true);
});
