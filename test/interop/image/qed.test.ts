/** QED images between us and QEMU: whoever writes, the other one reads the same and finds nothing wrong. */
import { readFileSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { afterAll, expect } from "vitest";
import { imageInfo, renderInfo, renderInfoJson } from "../../../src/image/info.ts";
import { imageMap, renderMap, renderMapJson } from "../../../src/image/map.ts";
import { checkQed } from "../../../src/image/qed/check-qed.ts";
import { createQed } from "../../../src/image/qed/create.ts";
import { renderCheck } from "../../../src/image/tables/render-check.ts";
import { createRealEnv } from "../../../src/os/real-env.ts";
import { firstDifference } from "../../support/patterns.ts";
import { handMadeQed } from "../../support/qed-bytes.ts";
import { run, runOk } from "../../support/run.ts";
import { Prng, runSeed } from "../../support/seed.ts";
import { tempDir } from "../../support/temp-dir.ts";
import { itWith } from "../../support/tools.ts";
import { drawnShapes, rounds, roundsTimeoutMs } from "./amount.ts";
import {
  assertQemuAgrees,
  backingPath,
  openOurs,
  type QedShape,
  type QedWorld,
  qemuCreates,
  qemuWrites,
  weWrite,
} from "./qed-rounds.ts";

const KIB = 1024;
const ROUNDS = rounds({ local: 1, ci: 20 });
const MIB = 1024 * KIB;
const env = createRealEnv();
const folder = tempDir(tmpdir());
let made = 0;

afterAll(() => folder[Symbol.dispose]());

const SHAPES: readonly QedShape[] = [
  { sizeBytes: 5 * MIB + 512, clusterBytes: 64 * KIB, tableClusters: 4 },
  // Several L2 tables: one covers 4 MiB.
  { sizeBytes: 13 * MIB + 1536, clusterBytes: 4 * KIB, tableClusters: 2 },
  { sizeBytes: 6 * MIB, clusterBytes: 8 * KIB, tableClusters: 16 },
  { sizeBytes: 9 * MIB + 512, clusterBytes: MIB, tableClusters: 2 },
  { sizeBytes: 5 * MIB, clusterBytes: 64 * KIB, tableClusters: 4, backingBytes: 5 * MIB },
  // A backing that is shorter, and ends within a cluster.
  { sizeBytes: 9 * MIB + 512, clusterBytes: 4 * KIB, tableClusters: 2, backingBytes: 6 * MIB + 512 },
];

function describeShape({ sizeBytes, clusterBytes, tableClusters, backingBytes }: QedShape): string {
  const over = backingBytes === undefined ? "" : ` over ${backingBytes}`;
  return `${sizeBytes} bytes in clusters of ${clusterBytes}, tables of ${tableClusters}${over}`;
}

function newWorld(shape: QedShape, stream: string): Omit<QedWorld, "model"> {
  return { env, rng: new Prng(runSeed(), stream), path: folder.file(`${++made}.qed`), shape };
}

async function assertWeAgree(world: QedWorld): Promise<void> {
  await using image = await openOurs(world, true);
  const found = Buffer.alloc(world.model.length, 0xee);
  await image.read(0, found);
  expect(firstDifference(found, world.model)).toBeUndefined();
}

async function text(pieces: AsyncIterable<string>): Promise<string> {
  let all = "";
  for await (const piece of pieces) all += piece;
  return all;
}

for (const shape of drawnShapes(SHAPES, 3)) {
  itWith(
    ["qemu-img", "qemu-io"],
    `we and QEMU take turns on ${describeShape(shape)}`,
    async () => {
      const world = await qemuCreates(newWorld(shape, `turns ${describeShape(shape)}`));
      await assertWeAgree(world);
      for (let round = 0; round < ROUNDS; round++) {
        await weWrite(world, 30);
        await assertQemuAgrees(world);
        await qemuWrites(world, 20);
        await assertQemuAgrees(world);
        await assertWeAgree(world);
        expect(await checkQed(env, { path: world.path })).toMatchObject({ leaks: 0, corruptions: 0, checkErrors: 0 });
      }
    },
    roundsTimeoutMs(ROUNDS),
  );

  itWith(["qemu-img", "qemu-io"], `QEMU uses what we create: ${describeShape(shape)}`, async () => {
    const ours = newWorld(shape, "created");
    // QEMU's own beside it, for the model and to compare the bytes with.
    const theirs = await qemuCreates(newWorld(shape, "created"));
    const backing = { name: backingPath(theirs.path), format: "raw" };
    await createQed(env, { path: ours.path, ...shape, ...(shape.backingBytes !== undefined && { backing }) });
    expect(await runOk(["cmp", ours.path, theirs.path])).toBe("");
    await runOk(["cp", "--sparse=always", ours.path, theirs.path]);
    await qemuWrites(theirs, 20);
    await assertQemuAgrees(theirs);
    await assertWeAgree(theirs);
  });
}

itWith(["qemu-img", "qemu-io"], "info, map and check say what qemu-img says", async () => {
  for (const shape of SHAPES) {
    const world = await qemuCreates(newWorld(shape, "said"));
    await weWrite(world, 60);
    const { path } = world;
    const info = await imageInfo(env, { path });
    expect(renderInfo(info)).toBe(await runOk(["qemu-img", "info", "-f", "qed", path]));
    expect(renderInfoJson(info)).toBe(await runOk(["qemu-img", "info", "-f", "qed", "--output=json", path]));
    expect(renderCheck(await checkQed(env, { path }))).toBe(await runOk(["qemu-img", "check", "-f", "qed", path]));
    // Where there is a backing, qemu-img opens it and tells of it too; we do not.
    if (shape.backingBytes !== undefined) continue;
    const map = await text(renderMapJson(imageMap(env, { path })));
    expect(map).toBe(await runOk(["qemu-img", "map", "-f", "qed", "--output=json", path]));
    expect(await text(renderMap(imageMap(env, { path })))).toBe(await runOk(["qemu-img", "map", "-f", "qed", path]));
  }
});

itWith(["qemu-img"], "a check finds, counts and repairs what qemu-img check does", async () => {
  const clusters = new Map(Array.from({ length: 12 }, (_, index) => [5 * index, 1 + index]));
  const made = handMadeQed({ sizeBytes: 64 * 4096, clusters, features: 2n });
  const data = [...made.dataOffsets.values()];
  const damages: readonly (readonly [cluster: number, offset: number])[][] = [
    [],
    // Space lost, pointing behind the end, unaligned, two clusters with two references.
    [[5, 0]],
    [[6, made.bytes.length]],
    [
      [6, 100],
      [7, made.bytes.length + 4096],
      [10, 0],
    ],
    [
      [6, data[0] as number],
      [7, data[3] as number],
      [8, data[3] as number],
    ],
  ];
  for (const damage of damages) {
    for (const [cluster, offset] of damage) made.bytes.writeBigUInt64LE(BigInt(offset), made.l2Offset + 8 * cluster);
    const [ours, theirs] = [folder.file("ours.qed"), folder.file("theirs.qed")];
    for (const path of [ours, theirs]) writeFileSync(path, made.bytes);
    const report = await checkQed(env, { path: ours });
    const said = (await run(["qemu-img", "check", "-f", "qed", theirs])).stdout;
    expect(renderCheck(report)).toBe(said);
    await checkQed(env, { path: ours, repair: true });
    await run(["qemu-img", "check", "-f", "qed", "-r", "all", theirs]);
    const [after, afterTheirs] = [readFileSync(ours), readFileSync(theirs)];
    // What cannot be repaired keeps NEED_CHECK in our hands; QEMU clears it on closing, whatever it has found.
    const unrepaired = report.corruptions > report.badEntries.length;
    expect([after[16], afterTheirs[16]]).toEqual([unrepaired ? 2 : 0, 0]);
    expect(after.subarray(24).equals(afterTheirs.subarray(24)), JSON.stringify(damage)).toBe(true);
  }
});

itWith(["qemu-io", "qemu-img"], "QEMU may look at an image that we have open, and may not write it", async () => {
  const world = await qemuCreates(newWorld(SHAPES[0] as QedShape, "locked"));
  const write = ["qemu-io", "-f", "qed", "-c", "write -P 7 0 512", world.path];
  {
    await using _ = await openOurs(world, false);
    expect((await run(write)).stderr).toContain("lock");
  }
  expect((await run(write)).status).toBe(0);
});
