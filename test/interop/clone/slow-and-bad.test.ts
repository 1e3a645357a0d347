/** Sources that are slow, or cannot read all of their disk. */
import { existsSync, rmSync, writeFileSync } from "node:fs";
import { expect } from "vitest";
import {
  bytesOf,
  expectSame,
  missingOf,
  othersThan,
  placeIn,
  rangesDifference,
  readOnce,
  totalOf,
  untilDisk,
} from "../../support/clone-checks.ts";
import { runClone, startClone } from "../../support/clone-process.ts";
import { makeImage, pattern } from "../../support/patterns.ts";
import { nbdkit } from "../../support/peers.ts";
import { counts } from "../../support/seed.ts";
import { type TempDir, tempDir } from "../../support/temp-dir.ts";
import { itWith } from "../../support/tools.ts";
import { KiB, MiB } from "../serve/layout.ts";

itWith(["nbdkit"], "a demand read waits for about one delay while the background is saturated", async () => {
  // Much longer than what a busy machine adds.
  const delayMs = counts({ local: 200, ci: 1000 });
  // Two of a connection's requests at a time: behind the background's window of eight it would be five delays.
  const slow = ["--threads=2", "--filter=delay", "pattern", "64M", `rdelay=${delayMs}ms`];
  await using source = await nbdkit(...slow);
  using folder = tempDir();
  await using clone = await startClone(placeIn(folder, source));
  await using client = await clone.open();
  await untilDisk(clone, ({ hydration }) => (hydration?.fetchedBytes ?? 0) > 0);
  const waitsMs: number[] = [];
  for (let read = 0; read < counts({ local: 3, ci: 10 }); read++) {
    const offset = 60 * MiB - read * 2 * MiB;
    const startMs = performance.now();
    expect((await bytesOf(client, offset, 8)).readBigUInt64BE()).toBe(BigInt(offset));
    waitsMs.push(performance.now() - startMs);
  }
  const median = waitsMs.sort((a, b) => a - b)[Math.floor(waitsMs.length / 2)] ?? 0;
  expect(median).toBeGreaterThanOrEqual(delayMs * 0.9);
  expect(median, waitsMs.join(" ")).toBeLessThan(2.5 * delayMs);
});

const BAD = [
  { offset: 64 * KiB, length: 4 * KiB },
  { offset: MiB - 8 * KiB, length: 16 * KiB },
  { offset: 4 * MiB - 4 * KiB, length: 4 * KiB },
];
const DISK_BYTES = 4 * MiB;

const onlyBadBlocksLeft = ({ hydration }: { hydration: { stalledReason: string | null } | null }): boolean =>
  hydration?.stalledReason?.includes("cannot read") ?? false;

const REGIONS = [{ offset: 0, length: DISK_BYTES, salt: 11 }];

/** nbdkit's `eval` serves a file; while there is a file called "bad", the ranges of `BAD` cannot be read. */
function failingSource(folder: TempDir): string[] {
  makeImage(folder.file("disk"), DISK_BYTES, REGIONS);
  writeFileSync(folder.file("bad"), "");
  const hit = BAD.map(({ offset, length }) => `[ $4 -lt ${offset + length} ] && [ $(($4+$3)) -gt ${offset} ]`);
  const fail = "{ echo EIO these blocks are bad >&2; exit 1; }";
  const check = `if [ -e ${folder.file("bad")} ]; then ${hit.map((one) => `if ${one}; then ${fail}; fi`).join("; ")}; fi`;
  const read = `dd if=${folder.file("disk")} iflag=skip_bytes,count_bytes bs=1M skip=$4 count=$3 status=none`;
  return ["eval", `get_size=echo ${DISK_BYTES}`, `pread=${check}; ${read}`];
}

itWith(
  ["nbdkit"],
  "blocks that the source cannot read are listed to the byte, all others come, and they too later",
  async () => {
    using folder = tempDir();
    await using source = await nbdkit(...failingSource(folder));
    const place = placeIn(folder, source);
    await using clone = await startClone(place);
    const { hydration } = await untilDisk(clone, onlyBadBlocksLeft, 60_000);
    expect(hydration?.errors.map(({ offset, length, code }) => ({ offset, length, code }))).toEqual(
      BAD.map((range) => ({ ...range, code: "EIO" })),
    );
    expect(hydration?.errorsTotal).toBe(BAD.length);
    expect(await missingOf(clone)).toEqual(BAD);
    const good = othersThan(BAD, DISK_BYTES);
    expect(rangesDifference(place.image, good, (offset, length) => pattern(offset, length, 11))).toBeUndefined();
    // A guest gets an error for those alone, and may write over them.
    await using client = await clone.open();
    await expect(client.read(BAD[1]?.offset ?? 0, new Uint8Array(512))).rejects.toMatchObject({ code: "io" });
    expect((await bytesOf(client, 0, 512)).equals(pattern(0, 512, 11))).toBe(true);
    await client.write(64 * KiB, pattern(64 * KiB, 4 * KiB, 11));
    await expect(client.write(4 * MiB - 100, pattern(0, 100))).rejects.toMatchObject({ code: "io" });
    expect(totalOf(await missingOf(clone))).toBe(totalOf(BAD.slice(1)));

    rmSync(folder.file("bad"));
    await clone.ask("resume");
    await clone.hydrated();
    await client.close();
    expect(await clone.stop()).toBe(0);
    expect(rangesDifference(place.image, [{ offset: 0, length: DISK_BYTES }], (at, n) => pattern(at, n, 11))).toBe(
      undefined,
    );
  },
);

itWith(
  ["nbdkit"],
  "a source that fails at random, more often than not, is copied all the same once it recovers",
  async () => {
    using folder = tempDir();
    writeFileSync(folder.file("failing"), "");
    const errors = ["error=EIO", "error-pread-rate=60%", `error-file=${folder.file("failing")}`];
    await using source = await nbdkit("--filter=error", "pattern", "8M", ...errors);
    const place = placeIn(folder, source);
    await using clone = await startClone(place);
    await untilDisk(clone, onlyBadBlocksLeft, 60_000);
    const missing = totalOf(await missingOf(clone));
    const { hydration, missingBytes } = (await clone.status()).disks[0] ?? {};
    expect(missing).toBe(missingBytes);
    expect(hydration?.errorsTotal).toBeGreaterThan(0);
    rmSync(folder.file("failing"));
    await clone.ask("resume");
    await clone.hydrated();
    expect((await readOnce(clone, 0, 8)).readBigUInt64BE()).toBe(0n);
    expect(await clone.stop()).toBe(0);
    await expectSame(place.image, place.source);
  },
);

itWith(["nbdkit"], "a source that is limited is copied as fast as that goes", async () => {
  const seconds = counts({ local: 2, ci: 5 });
  const bytesPerSecond = 2 * MiB;
  // nbdkit lets two seconds' worth through at once.
  const sizeBytes = (2 + seconds) * bytesPerSecond;
  const line = ["--filter=rate", "pattern", String(sizeBytes), `connection-rate=${8 * bytesPerSecond}`];
  await using source = await nbdkit(...line);
  using folder = tempDir();
  const place = placeIn(folder, source);
  const startMs = performance.now();
  const { status } = await runClone({ ...place, flags: ["--exit-when-hydrated"] });
  const tookMs = performance.now() - startMs;
  expect(status).toBe(0);
  expect(tookMs).toBeGreaterThan(seconds * 1000 * 0.8);
  expect(tookMs).toBeLessThan(seconds * 1000 * 2 + 10_000);
  await using unlimited = await nbdkit("pattern", String(sizeBytes));
  await expectSame(place.image, placeIn(folder, unlimited).source);
});

itWith(["nbdkit"], "a source that cannot read anything is not begun with, and can be later", async () => {
  using folder = tempDir();
  writeFileSync(folder.file("failing"), "");
  const errors = ["error=EIO", "error-pread-rate=100%", `error-file=${folder.file("failing")}`];
  await using source = await nbdkit("--filter=error", "pattern", "1M", ...errors);
  const place = placeIn(folder, source);
  const refused = await runClone({ ...place, flags: ["--exit-when-hydrated"] });
  expect(refused).toMatchObject({ status: 69, stderr: expect.stringContaining("every read with an error") });
  expect(existsSync(place.image)).toBe(false);
  rmSync(folder.file("failing"));
  expect((await runClone({ ...place, flags: ["--exit-when-hydrated"] })).status).toBe(0);
  await expectSame(place.image, place.source);
});
