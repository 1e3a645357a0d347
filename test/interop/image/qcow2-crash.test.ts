/** qcow2 images whose writer was killed: QEMU's opened by us, ours opened by QEMU. All that was acknowledged is there. */
import { spawn } from "node:child_process";
import { readFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { createInterface } from "node:readline";
import { afterAll, expect } from "vitest";
import { checkQcow2 } from "../../../src/image/qcow2/check-qcow2.ts";
import { createRealEnv } from "../../../src/os/real-env.ts";
import { firstDifference, pattern } from "../../support/patterns.ts";
import { run, runOk } from "../../support/run.ts";
import { Prng, runSeed } from "../../support/seed.ts";
import { startServe } from "../../support/serve-process.ts";
import { tempDir } from "../../support/temp-dir.ts";
import { itWith } from "../../support/tools.ts";
import { rounds } from "./amount.ts";
import { openOurs, type Qcow2Shape, type Qcow2World, qemuCreates } from "./qcow2-rounds.ts";

const KIB = 1024;
const KILLS_OF_QEMU = rounds({ local: 1, ci: 8 });
const KILLS_OF_OURS = rounds({ local: 1, ci: 8 });
const MIB = 1024 * KIB;
const env = createRealEnv();
const folder = tempDir(tmpdir());
let made = 0;

afterAll(() => folder[Symbol.dispose]());

const SHAPES: readonly Qcow2Shape[] = [
  { sizeBytes: 13 * MIB + 512, clusterBytes: 512 },
  { sizeBytes: 9 * MIB, clusterBytes: 64 * KIB },
  { sizeBytes: 9 * MIB, clusterBytes: 4 * KIB, options: "compat=0.10" },
];

/** QEMU leaves the dirty bit there, and reference counts that it has not written. */
const LAZY: Qcow2Shape = { sizeBytes: 9 * MIB, clusterBytes: 16 * KIB, options: "lazy_refcounts=on" };
const OVER_BACKING: Qcow2Shape = { sizeBytes: 9 * MIB, clusterBytes: 16 * KIB, backingBytes: 8 * MIB };

interface Write {
  readonly offset: number;
  readonly length: number;
  /** 0: zeroes. */
  readonly byte: number;
}

/** The first of them is of data: QEMU allocates for it, where it has no need to for zeroes. */
function drawWrites({ rng, shape }: Pick<Qcow2World, "rng" | "shape">, count: number): Write[] {
  const sectors = shape.sizeBytes / 512;
  return Array.from({ length: count }, (_, index) => {
    const first = rng.integer(0, sectors - 1);
    const length = 512 * Math.min(rng.integer(1, 40), sectors - first);
    return { offset: first * 512, length, byte: index > 0 && rng.chance(0.2) ? 0 : rng.integer(1, 255) };
  });
}

/** Has qemu-io write to `target`; calls `strike` when so many are acknowledged. Resolves to how many were, in the end. */
async function writesUntil(
  target: readonly string[],
  writes: readonly Write[],
  { count, strike }: { count: number; strike: (pid: number) => void },
): Promise<number> {
  const commands = writes.flatMap(({ offset, length, byte }) => [
    "-c",
    byte === 0 ? `write -z ${offset} ${length}` : `write -P ${byte} ${offset} ${length}`,
  ]);
  // Its output would otherwise come in blocks.
  const child = spawn("stdbuf", ["-oL", "qemu-io", ...commands, ...target], { stdio: ["ignore", "pipe", "ignore"] });
  let acknowledged = 0;
  for await (const line of createInterface({ input: child.stdout })) {
    if (!/^wrote (\d+)\/\1 bytes/.test(line)) continue;
    if (++acknowledged === count) strike(child.pid as number);
  }
  return acknowledged;
}

/** What the disk has to hold, and the range about which nothing is known. */
function applied(world: Qcow2World, writes: readonly Write[], acknowledged: number): { unknown: Write } {
  for (const { offset, length, byte } of writes.slice(0, acknowledged)) world.model.fill(byte, offset, offset + length);
  const unknown = writes[acknowledged];
  if (unknown === undefined) throw new Error("the writer was not stopped in time");
  return { unknown };
}

function assertHolds(found: Buffer, { model }: Qcow2World, { offset, length }: Write): void {
  model.copy(found, offset, offset, offset + length);
  expect(firstDifference(found, model)).toBeUndefined();
}

/** Corruption fails; lost space is what a kill may leave. */
async function assertNoErrors(path: string): Promise<void> {
  const { status, stdout } = await run(["qemu-img", "check", "-f", "qcow2", "--output=json", path]);
  expect([0, 3]).toContain(status);
  expect(JSON.parse(stdout)).not.toHaveProperty("corruptions");
}

for (const shape of [...SHAPES, LAZY, OVER_BACKING]) {
  const what = `clusters of ${shape.clusterBytes}${shape.options === undefined ? "" : `, ${shape.options}`}`;
  const lazy = shape === LAZY;
  itWith(
    ["qemu-img", "qemu-io", "stdbuf"],
    `an image that a killed QEMU has left is checked and used: ${what}`,
    async () => {
      const rng = new Prng(runSeed(), `killed qemu ${what}`);
      for (let round = 0; round < KILLS_OF_QEMU; round++) {
        const world = await qemuCreates({ env, rng, path: folder.file(`${++made}.qcow2`), shape });
        const writes = drawWrites(world, 300);
        const count = rng.integer(1, 60);
        const acknowledged = await writesUntil(["-f", "qcow2", world.path], writes, {
          count,
          strike: (pid) => process.kill(pid, "SIGKILL"),
        });
        const { unknown } = applied(world, writes, acknowledged);
        {
          await using image = await openOurs(world, false);
          expect(image.dirty).toBe(lazy);
          const found = Buffer.alloc(shape.sizeBytes);
          await image.read(0, found);
          assertHolds(found, world, unknown);
          // In place or by allocation, as it comes; behind the barrier if need be.
          const bytes = pattern(unknown.offset, unknown.length, 77);
          await image.write(unknown.offset, bytes);
          bytes.copy(world.model, unknown.offset);
          await image.checkEnded();
          expect(image.checkProgress.state).toBe(lazy ? "clean" : "none");
          await image.flush();
        }
        expect(await checkQcow2(env, { path: world.path })).toMatchObject({
          corruptions: 0,
          checkErrors: 0,
          dirty: false,
        });
        await assertNoErrors(world.path);
        const raw = `${world.path}.raw`;
        await runOk(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", world.path, raw]);
        expect(firstDifference(readFileSync(raw), world.model)).toBeUndefined();
      }
    },
  );
}

for (const shape of SHAPES) {
  const what = `clusters of ${shape.clusterBytes}${shape.options === undefined ? "" : `, ${shape.options}`}`;
  itWith(
    ["qemu-img", "qemu-io", "stdbuf"],
    `an image that we leave when killed is right in QEMU's eyes: ${what}`,
    async () => {
      const rng = new Prng(runSeed(), `killed server ${what}`);
      for (let round = 0; round < KILLS_OF_OURS; round++) {
        const world = await qemuCreates({ env, rng, path: folder.file(`${++made}.qcow2`), shape });
        const writes = drawWrites(world, 400);
        await using server = await startServe({ image: world.path, socket: folder.file(`s${made}`) });
        const killed: Promise<unknown>[] = [];
        const acknowledged = await writesUntil(["-f", "raw", server.uri], writes, {
          count: rng.integer(1, 100),
          strike: () => void killed.push(server.kill()),
        });
        await Promise.all(killed);
        expect(acknowledged).toBeLessThan(writes.length);
        const { unknown } = applied(world, writes, acknowledged);
        await assertNoErrors(world.path);
        const raw = `${world.path}.raw`;
        // QEMU goes on with it.
        await runOk(["qemu-io", "-f", "qcow2", "-c", `write -P 9 ${unknown.offset} 512`, world.path]);
        await runOk(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", world.path, raw]);
        assertHolds(readFileSync(raw), world, unknown);
      }
    },
  );
}

itWith(["qemu-img", "qemu-io"], "serve works on a qcow2 image, and leaves it clean", async () => {
  const shape = SHAPES[0] as Qcow2Shape;
  const rng = new Prng(runSeed(), "served");
  const world = await qemuCreates({ env, rng, path: folder.file("served.qcow2"), shape });
  const writes = drawWrites(world, 60);
  {
    await using server = await startServe({ image: world.path, socket: folder.file("s") });
    await writesUntil(["-f", "raw", server.uri], writes, { count: -1, strike: () => undefined });
    for (const { offset, length, byte } of writes) world.model.fill(byte, offset, offset + length);
    expect(await server.stop()).toBe(0);
  }
  await runOk(["qemu-img", "check", "-q", "-f", "qcow2", world.path]);
  const raw = folder.file("served.raw");
  await runOk(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", world.path, raw]);
  expect(firstDifference(readFileSync(raw), world.model)).toBeUndefined();
});

itWith(
  ["qemu-img", "qemu-io", "stdbuf"],
  "serve works on what a killed QEMU has left, allocations and all",
  async () => {
    const shape = LAZY;
    const rng = new Prng(runSeed(), "left and served");
    const world = await qemuCreates({ env, rng, path: folder.file("left.qcow2"), shape });
    const writes = drawWrites(world, 300);
    const strike = (pid: number): void => void process.kill(pid, "SIGKILL");
    const acknowledged = await writesUntil(["-f", "qcow2", world.path], writes, { count: 5, strike });
    applied(world, writes, acknowledged);
    expect(await checkQcow2(env, { path: world.path })).toMatchObject({ dirty: true });
    const rest = writes.slice(acknowledged);
    {
      await using server = await startServe({ image: world.path, socket: folder.file("sl") });
      await writesUntil(["-f", "raw", server.uri], rest, { count: -1, strike: () => undefined });
      for (const { offset, length, byte } of rest) world.model.fill(byte, offset, offset + length);
      expect(await server.stop()).toBe(0);
    }
    expect(await checkQcow2(env, { path: world.path })).toMatchObject({ dirty: false, corruptions: 0 });
    const raw = folder.file("left.raw");
    await runOk(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", world.path, raw]);
    expect(firstDifference(readFileSync(raw), world.model)).toBeUndefined();
  },
);
