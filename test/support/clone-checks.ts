/** What tests of `blockferry clone` ask of a running one, and of what it has left behind. */
import { closeSync, openSync, readSync, statSync } from "node:fs";
import { expect } from "vitest";
import type { NbdClient } from "../../src/nbd/client/client.ts";
import type { CloneOptions, CloneProcess } from "./clone-process.ts";
import { firstDifference } from "./patterns.ts";
import type { Peer } from "./peers.ts";
import { runOk } from "./run.ts";
import type { TempDir } from "./temp-dir.ts";

const BLOCK_BYTES = 512;
const STEP_BYTES = 2 ** 20;

export type CloneStatus = Awaited<ReturnType<CloneProcess["status"]>>;

export interface ByteRange {
  readonly offset: number;
  readonly length: number;
}

/** The usual places in `folder`, for a clone of `source`. */
export function placeIn(
  folder: TempDir,
  source: Peer | string,
): Required<Pick<CloneOptions, "source" | "image" | "socket">> {
  const uri = typeof source === "string" ? source : uriOf(source);
  return { source: uri, image: folder.file("copy.raw"), socket: folder.file("s") };
}

/** URI of a peer's export. */
export function uriOf({ address }: Peer, exportName = ""): string {
  if (address.kind !== "unix") throw new Error("peers listen on unix sockets");
  return `nbd+unix:///${exportName}?socket=${address.path}`;
}

/** What the file takes on its file system. */
export function allocatedBytes(path: string): number {
  return statSync(path).blocks * BLOCK_BYTES;
}

/** QEMU reads both from end to end; throws when they differ. */
export async function expectSame(image: string, uri: string): Promise<void> {
  const compare = ["qemu-img", "compare", "-f", "raw", "-F", "raw", image, uri];
  expect(await runOk(compare, { timeoutMs: 100_000 })).toContain("Images are identical");
}

/** Bytes of an export, read into a buffer that held something else. */
export async function bytesOf(client: NbdClient, offset: number, length: number): Promise<Buffer> {
  const into = Buffer.alloc(length, 0xee);
  await client.read(offset, into);
  return into;
}

/** The same, through a session of its own. */
export async function readOnce(clone: CloneProcess, offset: number, length: number): Promise<Buffer> {
  await using client = await clone.open();
  return await bytesOf(client, offset, length);
}

/** The only disk's part of the status. */
export async function diskOf(clone: CloneProcess): Promise<CloneStatus["disks"][number]> {
  const [disk] = (await clone.status()).disks;
  if (disk === undefined) throw new Error("a clone without a disk");
  return disk;
}

/** Resolves to the disk's status once it is as `wanted`. */
export async function untilDisk(
  clone: CloneProcess,
  wanted: (disk: CloneStatus["disks"][number]) => boolean,
  timeoutMs = 20_000,
): Promise<CloneStatus["disks"][number]> {
  const lastMs = performance.now() + timeoutMs;
  for (;;) {
    const disk = await diskOf(clone);
    if (wanted(disk)) return disk;
    if (performance.now() > lastMs)
      throw new Error(`it did not come to that: ${JSON.stringify(disk)}\n${clone.output}`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

/** Resolves when the clone has been at it for so much longer: for what is to go on for a while, and for what must not end. */
export async function letPass(clone: CloneProcess, seconds: number): Promise<void> {
  const { uptimeSeconds } = await clone.status();
  while ((await clone.status()).uptimeSeconds < uptimeSeconds + seconds) {
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

/** As `blockferry missing` lists it. */
export async function missingOf(clone: CloneProcess): Promise<ByteRange[]> {
  return JSON.parse(await clone.ask("missing", "--json")) as ByteRange[];
}

export function totalOf(ranges: readonly ByteRange[]): number {
  return ranges.reduce((sum, { length }) => sum + length, 0);
}

/** What lies between `ranges`, which are ascending and apart. */
export function othersThan(ranges: readonly ByteRange[], sizeBytes: number): ByteRange[] {
  const others: ByteRange[] = [];
  let at = 0;
  for (const { offset, length } of [...ranges, { offset: sizeBytes, length: 0 }]) {
    if (offset > at) others.push({ offset: at, length: offset - at });
    at = offset + length;
  }
  return others;
}

/** Undefined when `ranges` of the file hold what `expected` says; otherwise a sentence about the first difference. */
export function rangesDifference(
  path: string,
  ranges: readonly ByteRange[],
  expected: (offset: number, length: number) => Buffer,
): string | undefined {
  const fd = openSync(path, "r");
  try {
    for (const { offset, length } of steps(ranges)) {
      const bytes = Buffer.alloc(length);
      readSync(fd, bytes, 0, length, offset);
      const found = firstDifference(bytes, expected(offset, length));
      if (found !== undefined) return `${path} differs at ${offset + found.index}: ${found.text}`;
    }
    return undefined;
  } finally {
    closeSync(fd);
  }
}

/** The same ranges, in pieces that fit into memory. */
function* steps(ranges: readonly ByteRange[]): Generator<ByteRange> {
  for (const { offset, length } of ranges) {
    for (let done = 0; done < length; done += STEP_BYTES) {
      yield { offset: offset + done, length: Math.min(STEP_BYTES, length - done) };
    }
  }
}

/** `nbdinfo --map=x-blockferry:presence`: type 0 is local, 1 missing. */
export async function presenceMap(uri: string): Promise<{ offset: number; length: number; type: number }[]> {
  return JSON.parse(await runOk(["nbdinfo", "--map=x-blockferry:presence", "--json", uri]));
}
