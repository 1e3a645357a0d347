/** fio's own verification on a copy that is on its way, and the source's bytes wherever fio did not write. */
import { expect } from "vitest";
import { diskOf, placeIn, rangesDifference } from "../../support/clone-checks.ts";
import { startClone } from "../../support/clone-process.ts";
import { makeImage, pattern } from "../../support/patterns.ts";
import { nbdkit } from "../../support/peers.ts";
import { runOk } from "../../support/run.ts";
import { counts, runSeed } from "../../support/seed.ts";
import { tempDir } from "../../support/temp-dir.ts";
import { itWith } from "../../support/tools.ts";
import { MiB } from "../serve/layout.ts";

const SIZE = counts({ local: 24, ci: 128 }) * MiB;
/** fio works on the first half. */
const USED = SIZE / 2;

interface Report {
  readonly jobs: readonly { readonly error: number; readonly write: { readonly io_bytes: number } }[];
}

itWith(["fio", "nbdkit"], "random writes of odd sizes verify while the rest arrives", async () => {
  using folder = tempDir();
  makeImage(folder.file("disk"), SIZE, [{ offset: 0, length: SIZE, salt: 21 }]);
  await using source = await nbdkit("-r", "file", folder.file("disk"));
  const place = placeIn(folder, source);
  await using clone = await startClone({ ...place, flags: ["--rate=256K"] });
  const fixed = ["--name=job", "--ioengine=nbd", "--thread", "--output-format=json", `--randseed=${runSeed() + 1}`];
  const job = [
    "--rw=randwrite",
    "--bsrange=512-64k",
    "--bs_unaligned",
    "--iodepth=16",
    "--verify=crc32c",
    "--fsync=64",
  ];
  const where = [`--aux-path=${folder.path}`, `--uri=${clone.uri}`, `--size=${USED}`];
  const json = await runOk(["fio", ...fixed, ...job, ...where], { timeoutMs: 100_000 });
  const report = JSON.parse(json.slice(json.indexOf("{"))) as Report;
  expect(report.jobs[0]?.error).toBe(0);
  expect(report.jobs[0]?.write.io_bytes).toBeGreaterThan(USED * 0.9);
  expect((await diskOf(clone)).hydration?.state).toBe("hydrating");
  await clone.call("set-speed", { bytesPerSecond: null });
  await clone.hydrated();
  // fio finds what it wrote in the finished image as well.
  await runOk(["fio", ...fixed, ...job, ...where, "--verify_only"], { timeoutMs: 100_000 });
  expect(await clone.stop()).toBe(0);
  const rest = [{ offset: USED, length: SIZE - USED }];
  expect(rangesDifference(place.image, rest, (offset, length) => pattern(offset, length, 21))).toBeUndefined();
});
