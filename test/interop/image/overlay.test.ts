/**
 * `blockferry clone` into qcow2 and QED: killed again and again while a guest works, looked at by QEMU in between, and in
 * the end an image like any other.
 */
import { copyFileSync, existsSync, readFileSync, statSync, truncateSync, writeFileSync } from "node:fs";
import { describe, expect } from "vitest";
import { Oracle } from "../../sim/oracle.ts";
import { drawHabits, Guest } from "../../sim/workload.ts";
import { diskOf, placeIn, uriOf } from "../../support/clone-checks.ts";
import { blockferry, type CloneProcess, runClone, startClone } from "../../support/clone-process.ts";
import { makeImage } from "../../support/patterns.ts";
import { nbdkit, nbdkitIn } from "../../support/peers.ts";
import { run, runOk } from "../../support/run.ts";
import { counts, Prng, runSeed } from "../../support/seed.ts";
import { type TempDir, tempDir } from "../../support/temp-dir.ts";
import { itWith } from "../../support/tools.ts";

const MIB = 1024 * 1024;
const FORMATS = ["qcow2", "qed"] as const;
const KILLS = counts({ local: 1, ci: 12 });
/** What a reader of the image would find is not there yet. */
const REFUSED = /Could not open backing file: Unknown protocol 'blockferry-unfinished'/;

/** As QEMU opens an image without regard for what it lies over. */
function alone(format: string, image: string): string {
  return `json:${JSON.stringify({ driver: format, file: { driver: "file", filename: image }, backing: null })}`;
}

/** Nothing that QEMU does with a half-hydrated image may take what is missing for zeroes. */
async function expectRefused(format: string, image: string, folder: TempDir): Promise<void> {
  const before = readFileSync(image);
  const scratch = folder.file("scratch.raw");
  writeFileSync(scratch, "");
  truncateSync(scratch, 4 * MIB);
  const attempts = [
    ["qemu-img", "convert", "-f", format, "-O", "raw", image, folder.file("never")],
    ["qemu-img", "compare", "-f", format, "-F", "raw", image, scratch],
    ["qemu-img", "check", "-f", format, image],
    ["qemu-img", "map", "-f", format, image],
    ["qemu-io", "-f", format, "-r", "-c", "read 0 512", image],
    ["qemu-io", "-f", format, "-c", "write 0 512", image],
  ];
  for (const attempt of attempts) {
    const { status, stderr } = await run(attempt);
    expect(stderr).toMatch(REFUSED);
    expect(status).not.toBe(0);
  }
  expect(existsSync(folder.file("never"))).toBe(false);
  // Lost space at the most, once the mark is set aside.
  const { status, stdout } = await run(["qemu-img", "check", alone(format, image)]);
  expect([0, 3], stdout).toContain(status);
  expect(readFileSync(image).equals(before)).toBe(true);
  // Ours refuse it as well, with or without the map that says so.
  expect(await blockferry("serve", "-U", "-", image)).toMatchObject({ status: 75 });
  const copy = folder.file(`moved.${format}`);
  copyFileSync(image, copy);
  const moved = await blockferry("serve", "-U", "-", copy);
  expect(moved).toMatchObject({ status: 74, stderr: expect.stringContaining("a copy that is not finished") });
}

async function wholeDisk(clone: CloneProcess, sizeBytes: number): Promise<Uint8Array> {
  await using client = await clone.open();
  const bytes = new Uint8Array(sizeBytes);
  await client.read(0, bytes);
  return bytes;
}

/** Works until so many requests were begun, then the sidecar is killed; the guest sees its disk go. */
async function liveAndKill(clone: CloneProcess, oracle: Oracle, rng: Prng): Promise<void> {
  const drawn = drawHabits(rng, oracle.cells);
  const weights = { ...drawn.weights, zero: 2 + drawn.weights.zero, discard: 1 + drawn.weights.discard };
  const habits = { ...drawn, weights, threads: 3, cellsMax: 300, regionCells: oracle.cells };
  const guest = new Guest({ oracle, rng, habits, lingers: true });
  const client = await clone.open();
  const wanted = rng.integer(5, 150);
  const work = guest.run([client], 400);
  while (guest.requests < wanted) await new Promise((resolve) => setImmediate(resolve));
  process.kill(clone.pid, "SIGKILL");
  await work;
  client.drop("its server is gone");
  expect(await clone.ended).toBe(137);
}

for (const format of FORMATS) {
  describe(`a copy into ${format}`, () => {
    itWith(
      ["nbdkit", "qemu-img", "qemu-io"],
      `keeps every acknowledged write through ${KILLS} kills, is refused by QEMU until it is whole, and is whole then`,
      async () => {
        const rng = new Prng(runSeed(), `killed ${format}`);
        const sizeBytes = 6 * MIB + 512;
        const oracle = new Oracle({ sizeBytes, cellBytes: 512, zeroAtFirst: (cell) => cell % 1000 > 700 });
        using folder = tempDir();
        writeFileSync(folder.file("source.raw"), oracle.baseContent());
        const place = { ...placeIn(folder, ""), image: folder.file(`disk.${format}`) };
        for (let round = 0; round < KILLS; round++) {
          await using source = await nbdkitIn(folder, "-r", "file", folder.file("source.raw"));
          const flags = ["--rate", `${rng.pick([100, 700, 3000])}K`];
          await using clone = await startClone({ ...place, source: uriOf(source), flags });
          if (round > 0) oracle.recover("process-kill", await wholeDisk(clone, sizeBytes));
          await liveAndKill(clone, oracle, rng);
          const { status, stdout } = await run(["qemu-img", "check", alone(format, place.image)]);
          expect([0, 3], stdout).toContain(status);
          if (round === 0) await expectRefused(format, place.image, folder);
        }
        await using source = await nbdkitIn(folder, "-r", "file", folder.file("source.raw"));
        await using clone = await startClone({ ...place, source: uriOf(source) });
        oracle.recover("process-kill", await wholeDisk(clone, sizeBytes));
        await clone.hydrated();
        expect(await diskOf(clone)).toMatchObject({ format, state: "concluded" });
        await source.kill();
        expect(await clone.stop(), clone.output).toBe(0);
        await expectWhole(format, place.image, oracle, folder);
      },
      240_000,
    );

    itWith(["nbdkit", "qemu-img"], "takes no space for holes and zeroes, and equals its source", async () => {
      using folder = tempDir();
      const sourceFile = folder.file("source.raw");
      makeImage(sourceFile, 3 * MIB);
      truncateSync(sourceFile, 3 * 1024 * MIB);
      await using source = await nbdkitIn(folder, "-r", "file", sourceFile);
      const place = { ...placeIn(folder, source), image: folder.file(`sparse.${format}`) };
      const { status, stderr } = await runClone({ ...place, flags: ["--exit-when-hydrated"] });
      expect({ status, stderr }).toEqual({ status: 0, stderr: "" });
      expect(statSync(place.image).blocks * 512).toBeLessThan(5 * MIB);
      await runOk(["qemu-img", "check", "-f", format, place.image]);
      const compare = ["qemu-img", "compare", "-f", format, "-F", "raw", place.image, sourceFile];
      expect(await runOk(compare)).toContain("Images are identical");
      // The same command again finds nothing left to do.
      expect(await runClone({ ...place, flags: ["--exit-when-hydrated"] })).toMatchObject({ status: 0 });
      await runOk(["qemu-img", "check", "-f", format, place.image]);
    });
  });
}

/** QEMU finds nothing wrong, and what the oracle knows; and may write. */
async function expectWhole(format: string, image: string, oracle: Oracle, folder: TempDir): Promise<void> {
  expect(await runOk(["qemu-img", "check", "-f", format, image])).toContain("No errors were found on the image.");
  expect(JSON.parse(await runOk(["qemu-img", "info", "--output=json", image]))).not.toHaveProperty("backing-filename");
  const raw = folder.file("flat.raw");
  await runOk(["qemu-img", "convert", "-f", format, "-O", "raw", image, raw]);
  oracle.recover("process-kill", readFileSync(raw));
  await runOk(["qemu-io", "-f", format, "-c", "write -P 7 1M 128k", "-c", "read -P 7 1M 128k", image]);
  await runOk(["qemu-img", "check", "-f", format, image]);
}

describe("what a copy's image can be", () => {
  itWith(["nbdkit", "qemu-img"], "is named by --format, and by the extension otherwise", async () => {
    using folder = tempDir();
    await using source = await nbdkit("pattern", "1M");
    for (const [name, flags, format] of [
      ["a.img", ["--format", "qcow2"], "qcow2"],
      ["b.qed", ["--format", "raw"], "raw"],
      ["c.qed", [], "qed"],
    ] as const) {
      const place = { ...placeIn(folder, source), image: folder.file(name) };
      expect(await runClone({ ...place, flags: ["--exit-when-hydrated", ...flags] })).toMatchObject({ status: 0 });
      await runOk(["qemu-img", "compare", "-f", format, "-F", "raw", place.image, uriOf(source)]);
    }
    const odd = { ...placeIn(folder, source), image: folder.file("d.raw") };
    expect(await runClone({ ...odd, flags: ["--format", "vmdk"] })).toMatchObject({ status: 64 });
    expect(existsSync(odd.image)).toBe(false);
  });

  itWith(["nbdkit"], "is no format whose disks are whole sectors when the source's disk is not", async () => {
    using folder = tempDir();
    await using source = await nbdkit("pattern", "1000");
    for (const format of FORMATS) {
      const place = { ...placeIn(folder, source), image: folder.file(`odd.${format}`) };
      const { status, stderr } = await runClone({ ...place, flags: ["--exit-when-hydrated"] });
      expect({ status, stderr }).toMatchObject({
        status: 74,
        stderr: expect.stringContaining("no whole number of sectors"),
      });
      expect(existsSync(place.image) || existsSync(`${place.image}.map`)).toBe(false);
    }
  });

  itWith(["nbdkit"], "is the one that its map was made for, and no other", async () => {
    using folder = tempDir();
    await using source = await nbdkit("pattern", "1M");
    for (const format of FORMATS) {
      const place = { ...placeIn(folder, source), image: folder.file(`swapped.${format}`) };
      const other = { ...place, image: folder.file(`other.${format}`) };
      for (const each of [place, other]) {
        await using clone = await startClone({ ...each, flags: ["--rate", "1K"] });
        expect(await clone.stop()).toBe(0);
      }
      copyFileSync(other.image, place.image);
      const refused = await runClone(place);
      expect(refused).toMatchObject({
        status: 74,
        stderr: expect.stringContaining("not the image that its map was made"),
      });
    }
  });

  itWith(["nbdkit"], "is never one that was there before", async () => {
    using folder = tempDir();
    await using source = await nbdkit("pattern", "1M");
    for (const format of FORMATS) {
      const place = { ...placeIn(folder, source), image: folder.file(`mine.${format}`) };
      writeFileSync(place.image, "precious");
      expect(await runClone(place)).toMatchObject({ status: 74 });
      expect(readFileSync(place.image, "utf8")).toBe("precious");
      expect(existsSync(`${place.image}.map`)).toBe(false);
    }
  });
});
