/** A QED image that we and QEMU write in turn, and a raw model of what it has to hold. */
import { closeSync, openSync, writeSync } from "node:fs";
import type { BlockDevice } from "../../../src/block/device.ts";
import { MemoryDevice } from "../../../src/block/memory.ts";
import type { Env } from "../../../src/env/env.ts";
import type { QedImage } from "../../../src/image/qed/image.ts";
import { openQed } from "../../../src/image/qed/open.ts";
import { openRaw } from "../../../src/image/raw.ts";
import { makeImage, pattern } from "../../support/patterns.ts";
import { runOk } from "../../support/run.ts";
import type { Prng } from "../../support/seed.ts";

const SECTOR_BYTES = 512;

export interface QedShape {
  readonly sizeBytes: number;
  readonly clusterBytes: number;
  readonly tableClusters: number;
  /** Of the backing image, if there is one. */
  readonly backingBytes?: number;
}

export interface QedWorld {
  readonly env: Env;
  readonly rng: Prng;
  /** Of the image; the model is beside it, and the backing. */
  readonly path: string;
  readonly shape: QedShape;
  readonly model: Buffer;
}

interface Operation {
  readonly kind: "write" | "zero" | "discard" | "flush";
  readonly offset: number;
  readonly length: number;
  /** The byte that qemu-io fills with. */
  readonly byte: number;
}

/** Makes the backing, and the image by qemu-img. */
export async function qemuCreates(world: Omit<QedWorld, "model">): Promise<QedWorld> {
  const { path, shape } = world;
  const { sizeBytes, clusterBytes, tableClusters, backingBytes } = shape;
  const model = Buffer.alloc(sizeBytes);
  const options = `cluster_size=${clusterBytes},table_size=${tableClusters}`;
  const over = backingBytes === undefined ? [] : ["-b", backingPath(path), "-F", "raw"];
  if (backingBytes !== undefined) {
    makeImage(backingPath(path), backingBytes);
    pattern(0, backingBytes).copy(model);
  }
  await runOk(["qemu-img", "create", "-q", "-f", "qed", "-o", options, ...over, path, `${sizeBytes}`]);
  return { ...world, model };
}

export function backingPath(path: string): string {
  return `${path}.base`;
}

/** The image in our hands, over its backing if it has one. The backing is closed with the image. */
export async function openOurs({ env, path, shape }: QedWorld, readOnly: boolean): Promise<QedImage> {
  let backing: BlockDevice | undefined;
  if (shape.backingBytes !== undefined) {
    await using raw = await openRaw(env, { path: backingPath(path), readOnly: true });
    const content = Buffer.alloc(raw.sizeBytes);
    await raw.read(0, content);
    backing = new MemoryDevice({ sizeBytes: raw.sizeBytes, content, readOnly: true });
  }
  return openQed(env, { path, readOnly, ...(backing && { backing }) });
}

function draw({ rng, shape }: QedWorld): Operation {
  const sectors = shape.sizeBytes / SECTOR_BYTES;
  const first = rng.integer(0, sectors - 1);
  const longest = rng.pick([1, 8, 100, (3 * shape.clusterBytes) / SECTOR_BYTES]);
  let [offset, length] = [first * SECTOR_BYTES, Math.min(rng.integer(1, longest), sectors - first) * SECTOR_BYTES];
  // Whole clusters often: what is done with them is something else.
  if (rng.chance(0.3)) {
    const count = Math.ceil(shape.sizeBytes / shape.clusterBytes);
    const cluster = rng.integer(0, count - 1);
    offset = cluster * shape.clusterBytes;
    length = Math.min(rng.integer(1, 3) * shape.clusterBytes, shape.sizeBytes - offset);
  }
  const kind = rng.pick(["write", "write", "write", "zero", "discard", "flush"] as const);
  return { kind, offset, length, byte: rng.integer(1, 255) };
}

/** Random work of ours, several requests at a time where they do not meet. */
export async function weWrite(world: QedWorld, count: number): Promise<void> {
  await using image = await openOurs(world, false);
  for (let turn = 0; turn < count; turn++) await ourOperation(world, image, draw(world));
  await image.flush();
}

async function ourOperation({ model, rng }: QedWorld, image: BlockDevice, operation: Operation): Promise<void> {
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

/**
 * QEMU (7.2 was seen to) fills a zero cluster that is written in part from the backing, although it hides the backing:
 * what was zero comes back as it was before. Such writes are left out.
 */
async function withoutQemuDefect(world: QedWorld, operations: readonly Operation[]): Promise<Operation[]> {
  const { sizeBytes, clusterBytes, backingBytes } = world.shape;
  if (backingBytes === undefined) return [...operations];
  const zero = await zeroClusters(world);
  return operations.filter(({ kind, offset, length }) => {
    if (kind !== "write" && kind !== "zero") return true;
    const end = offset + length;
    const [first, last] = [Math.floor(offset / clusterBytes), Math.ceil(end / clusterBytes) - 1];
    const isWhole = (cluster: number): boolean =>
      cluster * clusterBytes >= offset && Math.min((cluster + 1) * clusterBytes, sizeBytes) <= end;
    if ([first, last].some((cluster) => zero.has(cluster) && !isWhole(cluster))) return false;
    for (let cluster = first; cluster <= last; cluster++) {
      if (kind === "zero" && isWhole(cluster)) zero.add(cluster);
      if (kind === "write") zero.delete(cluster);
    }
    return true;
  });
}

async function zeroClusters(world: QedWorld): Promise<Set<number>> {
  const { sizeBytes, clusterBytes } = world.shape;
  await using image = await openOurs(world, true);
  const found = new Set<number>();
  for (let at = 0; at < sizeBytes; at += clusterBytes) {
    const [run] = await image.runs(at, 1);
    if (run?.present && run.zero) found.add(at / clusterBytes);
  }
  return found;
}

/** Random work of qemu-io. */
export async function qemuWrites(world: QedWorld, count: number): Promise<void> {
  const commands: string[] = [];
  const drawn = Array.from({ length: count }, () => draw(world));
  for (const { kind, offset, length, byte } of await withoutQemuDefect(world, drawn)) {
    if (kind === "write") commands.push("-c", `write -P ${byte} ${offset} ${length}`);
    if (kind === "zero") commands.push("-c", `write -z ${offset} ${length}`);
    if (kind === "flush") commands.push("-c", "flush");
    if (kind === "write") world.model.fill(byte, offset, offset + length);
    if (kind === "zero") world.model.fill(0, offset, offset + length);
  }
  await runOk(["qemu-io", "-f", "qed", ...commands, "-c", "flush", world.path]);
}

export function modelPath(path: string): string {
  return `${path}.model`;
}

/** Puts the model into a file, for qemu-img. */
export function storeModel({ path, model }: QedWorld): void {
  const fd = openSync(modelPath(path), "w");
  writeSync(fd, model);
  closeSync(fd);
}

/** The image in QEMU's eyes: no errors, no leaks, and the model's contents. */
export async function assertQemuAgrees(world: QedWorld): Promise<void> {
  storeModel(world);
  await runOk(["qemu-img", "check", "-q", "-f", "qed", world.path]);
  await runOk(["qemu-img", "compare", "-q", "-f", "qed", "-F", "raw", world.path, modelPath(world.path)]);
}
