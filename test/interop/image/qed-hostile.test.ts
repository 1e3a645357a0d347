/** Damaged QED images, in our hands and in QEMU's: where both read one, they read the same. */
import { writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { expect } from "vitest";
import { BlockError } from "../../../src/block/error.ts";
import { ImageOpenError } from "../../../src/image/errors.ts";
import { checkQed } from "../../../src/image/qed/check-qed.ts";
import { openQed } from "../../../src/image/qed/open.ts";
import { createRealEnv } from "../../../src/os/real-env.ts";
import { damaged, type HandMade, handMadeQed } from "../../support/qed-bytes.ts";
import { runOk } from "../../support/run.ts";
import { counts, Prng, runSeed } from "../../support/seed.ts";
import { type TempDir, tempDir } from "../../support/temp-dir.ts";
import { itWith } from "../../support/tools.ts";

const SECTOR_BYTES = 512;
const COMPARED_BYTES_MAX = 4 * 1024 * 1024;
const BOX_MS = counts({ local: 4000, ci: 45_000 });
const ROUNDS_MAX = counts({ local: 400, ci: 20_000 });
/** Images that one qemu-io looks at. */
const BATCH = 40;
const env = createRealEnv();

/** A stretch of one and the same byte. */
interface Stretch {
  readonly offset: number;
  readonly byte: number;
  length: number;
}

interface Look {
  readonly path: string;
  /** What we have read; absent when we refused. */
  readonly stretches?: readonly Stretch[];
}

/** `undefined`: QEMU cannot be asked about this one. */
async function weLook(path: string, bytes: Buffer): Promise<Look | undefined> {
  try {
    await using image = await openQed(env, { path, readOnly: true });
    if (image.sizeBytes > COMPARED_BYTES_MAX) return undefined;
    const content = Buffer.alloc(image.sizeBytes);
    await image.read(0, content);
    const { corruptions } = await checkQed(env, { path });
    // QEMU refuses tables of one cluster, and takes what a crash left for an error.
    if (bytes.readUInt32LE(8) === 1 || (image.dirty && corruptions > 0)) return undefined;
    const stretches = stretchesOf(content);
    return stretches && { path, stretches };
  } catch (error) {
    if (error instanceof ImageOpenError || error instanceof BlockError) return { path };
    throw error;
  }
}

/** `undefined`: there are sectors of several bytes, which come from no data cluster. */
function stretchesOf(content: Buffer): Stretch[] | undefined {
  const list: Stretch[] = [];
  for (let offset = 0; offset < content.length; offset += SECTOR_BYTES) {
    const byte = content[offset] ?? 0;
    const sector = content.subarray(offset, offset + SECTOR_BYTES);
    if (!sector.equals(Buffer.alloc(sector.length, byte))) return undefined;
    const last = list.at(-1);
    if (last?.byte === byte) last.length += sector.length;
    else list.push({ offset, byte, length: sector.length });
  }
  return list;
}

/** For each image, what qemu-io printed while it read what we have read: nothing, if that is there. */
async function qemuLooks(looks: readonly Look[]): Promise<string[]> {
  const commands = looks.flatMap(({ path, stretches }) => [
    `open -r -o driver=qed ${path}`,
    ...(stretches ?? [{ offset: 0, byte: -1, length: SECTOR_BYTES }]).map(({ offset, byte, length }) =>
      byte === -1 ? `read -q ${offset} ${length}` : `read -q -P ${byte} ${offset} ${length}`,
    ),
    "close",
    // Its help parts one image's output from the next one's.
    "help length",
  ]);
  const args = commands.flatMap((command) => ["-c", command]);
  // It fails when any of its commands does.
  const script = 'stdbuf -oL qemu-io "$@" 2>&1 || true';
  const said = await runOk(["sh", "-c", script, "sh", ...args], { timeoutMs: 60_000 });
  const parts = said.split(/^length -- .*\n/m);
  expect(parts).toHaveLength(looks.length + 1);
  return parts.slice(0, -1);
}

/** As many damaged images as fit a batch. */
async function drawBatch(made: HandMade, folder: TempDir, rng: Prng): Promise<Look[]> {
  const looks: Look[] = [];
  for (let index = 0; index < BATCH; index++) {
    const path = folder.file(`${index}.qed`);
    const bytes = damaged(made, rng);
    writeFileSync(path, bytes);
    const look = await weLook(path, bytes);
    if (look !== undefined) looks.push(look);
  }
  return looks;
}

itWith(
  ["qemu-io", "stdbuf"],
  "what we read of a damaged image is what QEMU reads, and what QEMU refuses we refuse",
  async () => {
    using folder = tempDir(tmpdir());
    const rng = new Prng(runSeed(), "damaged, and compared");
    const clusters = new Map<number, number | "zero">([
      [0, 1],
      [3, 2],
      [4, "zero"],
      [5, 3],
      [9, 4],
      [63, 5],
    ]);
    const made = handMadeQed({ sizeBytes: 64 * 4096, clusters, plain: true });
    const seen = { same: 0, refused: 0, notCompared: 0 };
    const endMs = performance.now() + BOX_MS;
    let rounds = 0;
    for (; rounds < ROUNDS_MAX && performance.now() < endMs; rounds += BATCH) {
      const looks = await drawBatch(made, folder, rng);
      seen.notCompared += BATCH - looks.length;
      for (const [index, said] of (await qemuLooks(looks)).entries()) {
        const look = looks[index];
        seen[look?.stretches === undefined ? "refused" : "same"] += 1;
        if (look?.stretches !== undefined) expect(said, `in the batch at ${rounds}: ${look.path}`).toBe("");
      }
    }
    console.info(`${rounds} damaged images: ${JSON.stringify(seen)}`);
    expect(seen.same).toBeGreaterThan(rounds / 20);
    expect(seen.refused).toBeGreaterThan(rounds / 20);
    expect(seen.notCompared).toBeLessThan(rounds / 4);
    // The comparison can fail.
    const path = folder.file("whole.qed");
    writeFileSync(path, made.bytes);
    const wrong = [{ offset: 0, byte: 9, length: 4096 }];
    expect(await qemuLooks([{ path, stretches: wrong }])).toEqual([expect.stringContaining("verification failed")]);
  },
  BOX_MS + 90_000,
);
