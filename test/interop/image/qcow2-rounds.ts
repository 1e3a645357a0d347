/** A qcow2 image that we and QEMU write in turn, and a raw model of what it has to hold. */
import { writeFileSync } from "node:fs";
import type { BlockDevice } from "../../../src/block/device.ts";
import { MemoryDevice } from "../../../src/block/memory.ts";
import type { Env } from "../../../src/env/env.ts";
import type { Qcow2Image } from "../../../src/image/qcow2/image.ts";
import { openQcow2 } from "../../../src/image/qcow2/open.ts";
import { openRaw } from "../../../src/image/raw.ts";
import { makeImage, pattern } from "../../support/patterns.ts";
import { runOk } from "../../support/run.ts";
import type { Prng } from "../../support/seed.ts";

const SECTOR_BYTES = 512;
const COMPRESSED_CLUSTER_BYTES_MIN = 4096;

export interface Qcow2Shape {
  readonly sizeBytes: number;
  readonly clusterBytes: number;
  /** Of qemu-img create: "compat=0.10,refcount_bits=16", … */
  readonly options?: string;
  /** Of the backing image, if there is one. */
  readonly backingBytes?: number;
  /** Full at first, by `qemu-img convert -c`. */
  readonly compressed?: boolean;
}

export interface Qcow2World {
  readonly env: Env;
  readonly rng: Prng;
  /** Of the image; the model is beside it, and the backing. */
  readonly path: string;
  readonly shape: Qcow2Shape;
  readonly model: Buffer;
}

interface Operation {
  readonly kind: "write" | "zero" | "discard" | "flush" | "compress";
  readonly offset: number;
  readonly length: number;
  /** The byte that qemu-io fills with. */
  readonly byte: number;
}

/** Makes the backing, and the image by qemu-img. */
export async function qemuCreates(world: Omit<Qcow2World, "model">): Promise<Qcow2World> {
  const { path, shape, rng } = world;
  const { sizeBytes, clusterBytes, backingBytes, options, compressed = false } = shape;
  const model = Buffer.alloc(sizeBytes);
  const all = `cluster_size=${clusterBytes}${options === undefined ? "" : `,${options}`}`;
  const over = backingBytes === undefined ? [] : ["-b", backingPath(path), "-F", "raw"];
  if (backingBytes !== undefined) {
    makeImage(backingPath(path), backingBytes);
    pattern(0, Math.min(backingBytes, sizeBytes)).copy(model);
  }
  if (!compressed) {
    await runOk(["qemu-img", "create", "-q", "-f", "qcow2", "-o", all, ...over, path, `${sizeBytes}`]);
    return { ...world, model };
  }
  // Stretches of one byte, of a pattern, of nothing: what compresses well, badly, and not at all.
  for (let at = 0; at < sizeBytes; ) {
    const length = Math.min(rng.integer(1, 3 * clusterBytes), sizeBytes - at);
    const kind = rng.integer(0, 3);
    if (kind === 0) model.fill(rng.integer(1, 255), at, at + length);
    if (kind === 1) pattern(at, length, rng.integer(1, 60_000)).copy(model, at);
    if (kind === 2) for (let i = at; i < at + length; i++) model[i] = rng.integer(0, 255);
    at += length;
  }
  writeFileSync(modelPath(path), model);
  await runOk(["qemu-img", "convert", "-q", "-f", "raw", "-O", "qcow2", "-c", "-o", all, modelPath(path), path]);
  return { ...world, model };
}

export function backingPath(path: string): string {
  return `${path}.base`;
}

/** The image in our hands, over its backing if it has one. */
export async function openOurs({ env, path, shape }: Qcow2World, readOnly: boolean): Promise<Qcow2Image> {
  let backing: BlockDevice | undefined;
  if (shape.backingBytes !== undefined) {
    await using raw = await openRaw(env, { path: backingPath(path), readOnly: true });
    const content = Buffer.alloc(raw.sizeBytes);
    await raw.read(0, content);
    backing = new MemoryDevice({ sizeBytes: raw.sizeBytes, content, readOnly: true });
  }
  return openQcow2(env, { path, readOnly, ...(backing && { backing }) });
}

function draw({ rng, shape }: Qcow2World): Operation {
  const sectors = shape.sizeBytes / SECTOR_BYTES;
  const first = rng.integer(0, sectors - 1);
  const longest = rng.pick([1, 8, 100, (3 * shape.clusterBytes) / SECTOR_BYTES]);
  let [offset, length] = [first * SECTOR_BYTES, Math.min(rng.integer(1, longest), sectors - first) * SECTOR_BYTES];
  const byte = rng.integer(1, 255);
  // Whole clusters often: what is done with them is something else.
  if (rng.chance(0.3)) {
    const count = Math.ceil(shape.sizeBytes / shape.clusterBytes);
    const cluster = rng.integer(0, count - 1);
    offset = cluster * shape.clusterBytes;
    length = Math.min(rng.integer(1, 3) * shape.clusterBytes, shape.sizeBytes - offset);
    // With smaller clusters, QEMU (7.2 was seen to) comes to write such data over one of its own tables.
    const compresses = shape.clusterBytes >= COMPRESSED_CLUSTER_BYTES_MIN;
    if (compresses && rng.chance(0.2))
      return { kind: "compress", offset, length: Math.min(length, shape.clusterBytes), byte };
  }
  const kind = rng.pick(["write", "write", "write", "zero", "discard", "flush"] as const);
  return { kind, offset, length, byte };
}

/** Random work of ours. */
export async function weWrite(world: Qcow2World, count: number): Promise<void> {
  await using image = await openOurs(world, false);
  for (let turn = 0; turn < count; turn++) await ourOperation(world, image, draw(world));
  await image.flush();
}

async function ourOperation({ model, rng }: Qcow2World, image: BlockDevice, operation: Operation): Promise<void> {
  const { kind, offset, length } = operation;
  if (kind === "write") {
    const bytes = pattern(offset, length, rng.integer(1, 65_535));
    if (!rng.chance(0.3) || image.writeNow(offset, bytes) === -1) await image.write(offset, bytes);
    bytes.copy(model, offset);
  }
  if (kind === "zero") {
    await image.writeZeroes(offset, length, { noHole: rng.chance(0.3) });
    model.fill(0, offset, offset + length);
  }
  if (kind === "discard") {
    await image.discard(offset, length);
    await image.read(offset, model.subarray(offset, offset + length));
  }
  if (kind === "flush") await image.flush();
}

/** Clusters that QEMU can write compressed: it refuses those that are allocated. */
async function unallocated(world: Qcow2World): Promise<Set<number>> {
  const { sizeBytes, clusterBytes } = world.shape;
  await using image = await openOurs(world, true);
  const found = new Set<number>();
  for (let at = 0; at < sizeBytes; at += clusterBytes) {
    const [run] = await image.runs(at, 1);
    if (!run?.present) found.add(at / clusterBytes);
  }
  return found;
}

/** Random work of qemu-io. */
export async function qemuWrites(world: Qcow2World, count: number): Promise<void> {
  const { model, shape } = world;
  const commands: string[] = [];
  const discarded: Operation[] = [];
  const free = await unallocated(world);
  /** What was done since the first compressed write. */
  let compressed: "nothing" | "only" | "and other things" = "nothing";
  for (let turn = 0; turn < count; turn++) {
    const operation = draw(world);
    const { kind, offset, length, byte } = operation;
    const end = offset + length;
    if (kind === "write") commands.push("-c", `write -P ${byte} ${offset} ${length}`);
    if (kind === "zero") commands.push("-c", `write -z ${offset} ${length}`);
    if (kind === "flush") commands.push("-c", "flush");
    if (kind === "discard") {
      commands.push("-c", `discard ${offset} ${length}`);
      discarded.push(operation);
    }
    const { clusterBytes } = shape;
    // QEMU (7.2) goes on behind the last compressed data, even when they were freed since and somebody else's are there now.
    if (kind === "compress" && compressed !== "and other things" && free.has(offset / clusterBytes)) {
      commands.push("-c", `write -c -P ${byte} ${offset} ${length}`);
      model.fill(byte, offset, end);
      compressed = "only";
    } else if (compressed === "only" && kind !== "compress") compressed = "and other things";
    if (kind === "write") model.fill(byte, offset, end);
    if (kind === "zero") model.fill(0, offset, end);
    for (let cluster = Math.floor(offset / clusterBytes); cluster * clusterBytes < end; cluster++) free.delete(cluster);
  }
  await runOk(["qemu-io", "-d", "unmap", "-f", "qcow2", ...commands, "-c", "flush", world.path]);
  if (discarded.length === 0) return;
  // What is there now is QEMU's to say; whether we read the same is seen when both have looked.
  await using image = await openOurs(world, true);
  for (const { offset, length } of discarded) await image.read(offset, model.subarray(offset, offset + length));
}

export function modelPath(path: string): string {
  return `${path}.model`;
}

/** The image in QEMU's eyes: no errors, no leaks, and the model's contents. */
export async function assertQemuAgrees(world: Qcow2World): Promise<void> {
  writeFileSync(modelPath(world.path), world.model);
  await runOk(["qemu-img", "check", "-q", "-f", "qcow2", world.path]);
  await runOk(["qemu-img", "compare", "-q", "-f", "qcow2", "-F", "raw", world.path, modelPath(world.path)]);
}
