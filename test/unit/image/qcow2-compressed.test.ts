/** Compressed clusters that are read while they are overwritten and given back. */
import { expect, test } from "vitest";
import { checkQcow2 } from "../../../src/image/qcow2/check-qcow2.ts";
import { openQcow2 } from "../../../src/image/qcow2/open.ts";
import { FakeFiles } from "../../support/fake-files.ts";
import { pattern } from "../../support/patterns.ts";
import { handMadeQcow2 } from "../../support/qcow2-bytes.ts";
import { counts, itSeeded } from "../../support/seed.ts";

const PATH = "/vm/a.qcow2";
const CLUSTER = 4096;
const CLUSTERS = 24;

itSeeded(
  "readers of compressed clusters see old data or new, never what is left of data that was given back",
  async (rng) => {
    for (let round = 0; round < counts({ local: 40, ci: 400 }); round++) {
      const clusters = new Map(Array.from({ length: CLUSTERS }, (_, index) => [index, { compressed: index + 1 }]));
      const made = handMadeQcow2({ sizeBytes: CLUSTERS * CLUSTER, clusters, zstd: rng.chance(0.5) });
      const files = new FakeFiles();
      files.add(PATH, made.bytes);
      const image = await openQcow2({ files }, { path: PATH, readOnly: false });
      const { content } = made;
      const work: Promise<void>[] = [];
      for (let turn = 0; turn < 120; turn++) {
        const cluster = rng.integer(0, CLUSTERS - 1);
        const at = cluster * CLUSTER;
        // The first half is written, always the same; the second half only read.
        if (rng.chance(0.4)) {
          pattern(at, 2048, 99).copy(content, at);
          work.push(image.write(at, pattern(at, 2048, 99)));
        } else if (rng.chance(0.3)) {
          work.push(image.flush());
        } else {
          work.push(assertReads(at + 2048, 2048));
        }
        if (rng.chance(0.3)) await Promise.resolve();
        if (rng.chance(0.1)) await new Promise((resolve) => setImmediate(resolve));
      }
      await Promise.all(work);
      await assertReads(0, content.length);
      await image.close();
      expect(await checkQcow2({ files }, { path: PATH })).toMatchObject({ leaks: 0, corruptions: 0 });

      async function assertReads(offset: number, length: number): Promise<void> {
        const found = Buffer.alloc(length, 0xee);
        if (rng.chance(0.5) || image.readNow(offset, found) === -1) await image.read(offset, found);
        expect(found.equals(content.subarray(offset, offset + length))).toBe(true);
      }
    }
  },
  60_000,
);

test("a cluster that is overwritten and given back while it is loaded is looked up again", async () => {
  for (const zeroed of [false, true]) {
    const clusters = new Map([
      [0, { compressed: 1 }],
      [3, { compressed: 2 }],
    ]);
    const made = handMadeQcow2({ sizeBytes: CLUSTERS * CLUSTER, clusters });
    const files = new FakeFiles();
    files.add(PATH, made.bytes);
    await using image = await openQcow2({ files }, { path: PATH, readOnly: false });
    const found = Buffer.alloc(512, 0xee);
    await image.write(9 * CLUSTER, pattern(0, CLUSTER));
    await image.read(0, found);
    const release = files.hold("read");
    const reading = image.read(3 * CLUSTER + 512, found);
    await new Promise((resolve) => setImmediate(resolve));
    // Later ones go ahead; that one waits.
    files.hold("read")();
    if (zeroed) await image.writeZeroes(3 * CLUSTER, CLUSTER);
    else await image.write(3 * CLUSTER, pattern(3 * CLUSTER, CLUSTER, 7));
    await image.flush();
    expect(files.count(`punchHole ${made.dataOffsets.get(3)}+`)).toBe(1);
    release();
    await reading;
    expect(found.equals(zeroed ? Buffer.alloc(512) : pattern(3 * CLUSTER + 512, 512, 7))).toBe(true);
  }
});
