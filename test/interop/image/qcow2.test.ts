/** qcow2 images between us and QEMU: whoever writes, the other one reads the same and finds nothing wrong. */
import { statSync } from "node:fs";
import { tmpdir } from "node:os";
import { afterAll, expect } from "vitest";
import { imageInfo, renderInfo, renderInfoJson } from "../../../src/image/info.ts";
import { imageMap, renderMap, renderMapJson } from "../../../src/image/map.ts";
import { checkQcow2 } from "../../../src/image/qcow2/check-qcow2.ts";
import { createQcow2 } from "../../../src/image/qcow2/create.ts";
import { renderCheck } from "../../../src/image/tables/render-check.ts";
import { createRealEnv } from "../../../src/os/real-env.ts";
import { firstDifference } from "../../support/patterns.ts";
import { run, runOk } from "../../support/run.ts";
import { Prng, runSeed } from "../../support/seed.ts";
import { tempDir } from "../../support/temp-dir.ts";
import { itWith } from "../../support/tools.ts";
import { drawnShapes, rounds, roundsTimeoutMs } from "./amount.ts";
import {
  assertQemuAgrees,
  backingPath,
  openOurs,
  type Qcow2Shape,
  type Qcow2World,
  qemuCreates,
  qemuWrites,
  weWrite,
} from "./qcow2-rounds.ts";

const KIB = 1024;
const ROUNDS = rounds({ local: 1, ci: 9 });
const MIB = 1024 * KIB;
const TIMEOUT_MS = roundsTimeoutMs(ROUNDS);
const env = createRealEnv();
const folder = tempDir(tmpdir());
let made = 0;

afterAll(() => folder[Symbol.dispose]());

const PLAIN: readonly Qcow2Shape[] = [
  { sizeBytes: 5 * MIB + 512, clusterBytes: 64 * KIB },
  // Several L2 tables, refcount blocks, and a refcount table that has to grow.
  { sizeBytes: 13 * MIB + 1536, clusterBytes: 512 },
  { sizeBytes: 6 * MIB, clusterBytes: 4 * KIB, options: "compat=0.10" },
  { sizeBytes: 9 * MIB + 512, clusterBytes: 2 * MIB },
  { sizeBytes: 5 * MIB, clusterBytes: 64 * KIB, backingBytes: 5 * MIB },
  // A backing that is shorter, and ends within a cluster.
  { sizeBytes: 9 * MIB + 512, clusterBytes: 4 * KIB, backingBytes: 6 * MIB + 512 },
  { sizeBytes: 5 * MIB, clusterBytes: 8 * KIB, backingBytes: 7 * MIB, options: "compat=0.10" },
];

const ODD: readonly Qcow2Shape[] = [
  { sizeBytes: 9 * MIB, clusterBytes: 512, options: "refcount_bits=1" },
  { sizeBytes: 9 * MIB, clusterBytes: KIB, options: "refcount_bits=64" },
  { sizeBytes: 5 * MIB, clusterBytes: 2 * KIB, options: "refcount_bits=2" },
  { sizeBytes: 5 * MIB + 512, clusterBytes: 64 * KIB, options: "preallocation=metadata" },
  { sizeBytes: 5 * MIB, clusterBytes: 16 * KIB, options: "preallocation=falloc" },
  { sizeBytes: 5 * MIB, clusterBytes: 64 * KIB, options: "lazy_refcounts=on" },
  { sizeBytes: 5 * MIB + 512, clusterBytes: 64 * KIB, compressed: true },
  { sizeBytes: 3 * MIB, clusterBytes: 512, compressed: true, options: "compat=0.10" },
  { sizeBytes: 6 * MIB, clusterBytes: 2 * MIB, compressed: true },
  { sizeBytes: 5 * MIB + 512, clusterBytes: 64 * KIB, compressed: true, options: "compression_type=zstd" },
  { sizeBytes: 4 * MIB, clusterBytes: 4 * KIB, compressed: true, options: "compression_type=zstd" },
];

const SHAPES = [...PLAIN, ...ODD];

function describeShape({ sizeBytes, clusterBytes, backingBytes, options, compressed = false }: Qcow2Shape): string {
  const over = backingBytes === undefined ? "" : ` over ${backingBytes}`;
  const more = options === undefined ? "" : `, ${options}`;
  return `${sizeBytes} bytes in clusters of ${clusterBytes}${over}${more}${compressed ? ", compressed" : ""}`;
}

function newWorld(shape: Qcow2Shape, stream: string): Omit<Qcow2World, "model"> {
  return { env, rng: new Prng(runSeed(), stream), path: folder.file(`${++made}.qcow2`), shape };
}

async function assertWeAgree(world: Qcow2World): Promise<void> {
  await using image = await openOurs(world, true);
  const found = Buffer.alloc(world.model.length, 0xee);
  await image.read(0, found);
  expect(firstDifference(found, world.model)).toBeUndefined();
}

async function assertChecked({ path }: Qcow2World): Promise<void> {
  const report = await checkQcow2(env, { path });
  expect(report).toMatchObject({ leaks: 0, corruptions: 0, checkErrors: 0 });
  expect(renderCheck(report)).toBe(await runOk(["qemu-img", "check", "-f", "qcow2", path]));
}

async function text(pieces: AsyncIterable<string>): Promise<string> {
  let all = "";
  for await (const piece of pieces) all += piece;
  return all;
}

for (const shape of drawnShapes(SHAPES, 4)) {
  itWith(
    ["qemu-img", "qemu-io"],
    `we and QEMU take turns on ${describeShape(shape)}`,
    async () => {
      const world = await qemuCreates(newWorld(shape, `turns ${describeShape(shape)}`));
      await assertWeAgree(world);
      for (let round = 0; round < ROUNDS; round++) {
        await weWrite(world, 30);
        await assertQemuAgrees(world);
        await assertChecked(world);
        await qemuWrites(world, 20);
        await assertWeAgree(world);
        await assertQemuAgrees(world);
        await assertChecked(world);
      }
    },
    TIMEOUT_MS,
  );
}

for (const shape of drawnShapes(PLAIN, 3)) {
  itWith(["qemu-img", "qemu-io"], `QEMU uses what we create: ${describeShape(shape)}`, async () => {
    const ours = newWorld(shape, "created");
    // QEMU's own beside it, for the model and to compare the bytes with.
    const theirs = await qemuCreates(newWorld(shape, "created"));
    const backing = { name: backingPath(theirs.path), format: "raw" };
    const version = shape.options === undefined ? 3 : 2;
    await createQcow2(env, {
      path: ours.path,
      ...shape,
      version,
      ...(shape.backingBytes !== undefined && { backing }),
    });
    expect(await runOk(["cmp", ours.path, theirs.path])).toBe("");
    await runOk(["cp", "--sparse=always", ours.path, theirs.path]);
    await qemuWrites(theirs, 20);
    await assertWeAgree(theirs);
    await assertQemuAgrees(theirs);
  });
}

itWith(["qemu-img", "qemu-io"], "info and map say what qemu-img says", async () => {
  for (const shape of drawnShapes(SHAPES, 4)) {
    const world = await qemuCreates(newWorld(shape, "said"));
    // Where we have written, QEMU would go on to ask the file system for holes.
    await qemuWrites(world, 60);
    const { path } = world;
    // An image whose file has many holes is preallocated for QEMU, and then it asks the file system as well.
    await runOk(["fallocate", "--length", `${statSync(path).size}`, path]);
    const info = await imageInfo(env, { path });
    expect(renderInfo(info)).toBe(await runOk(["qemu-img", "info", "-f", "qcow2", path]));
    expect(renderInfoJson(info)).toBe(await runOk(["qemu-img", "info", "-f", "qcow2", "--output=json", path]));
    // Where there is a backing, qemu-img opens it and tells of it too; where all is preallocated, it asks the file system.
    if (shape.backingBytes !== undefined || shape.options?.includes("preallocation")) continue;
    const map = await text(renderMapJson(imageMap(env, { path })));
    expect(map).toBe(await runOk(["qemu-img", "map", "-f", "qcow2", "--output=json", path]));
    // It shows no compressed clusters to people.
    const shown = await run(["qemu-img", "map", "-f", "qcow2", path]);
    if (shown.status === 0) expect(await text(renderMap(imageMap(env, { path })))).toBe(shown.stdout);
    else expect(shown.stderr).toContain("compressed clusters");
  }
});

itWith(["qemu-io", "qemu-img"], "QEMU may look at an image that we have open, and may not write it", async () => {
  const world = await qemuCreates(newWorld(SHAPES[0] as Qcow2Shape, "locked"));
  const write = ["qemu-io", "-f", "qcow2", "-c", "write -P 7 0 512", world.path];
  {
    await using _ = await openOurs(world, false);
    expect((await run(write)).stderr).toContain("lock");
  }
  expect((await run(write)).status).toBe(0);
});
