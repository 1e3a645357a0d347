/** fio's own verification on top of an export, from several connections; trims and writes mixed. */
import { expect } from "vitest";
import { makeImage } from "../../support/patterns.ts";
import { run, runOk } from "../../support/run.ts";
import { runSeed } from "../../support/seed.ts";
import { startServe } from "../../support/serve-process.ts";
import { tempDir } from "../../support/temp-dir.ts";
import { itWith } from "../../support/tools.ts";
import { MiB } from "./layout.ts";

interface JobReport {
  readonly error: number;
  readonly read: { readonly io_bytes: number };
  readonly write: { readonly io_bytes: number };
  readonly trim: { readonly io_bytes: number };
}

/** Runs one fio job against a fresh 32 MiB export; the reports of its processes. */
async function fio(...flags: string[]): Promise<JobReport[]> {
  using folder = tempDir();
  makeImage(folder.file("disk.img"), 32 * MiB);
  await using server = await startServe({ image: folder.file("disk.img"), socket: folder.file("s") });
  const fixed = ["--name=job", "--ioengine=nbd", "--thread", "--output-format=json", `--randseed=${runSeed() + 1}`];
  // fio leaves a state file behind where it runs.
  const json = await runOk(["fio", ...fixed, `--aux-path=${folder.path}`, `--uri=${server.uri}`, ...flags]);
  return (JSON.parse(json.slice(json.indexOf("{"))) as { jobs: JobReport[] }).jobs;
}

itWith(["fio"], "random writes of 4 KiB at depth 32 verify by crc32c", async () => {
  const [job] = await fio("--rw=randwrite", "--bs=4k", "--size=16M", "--iodepth=32", "--verify=crc32c");
  expect(job).toMatchObject({ error: 0, write: { io_bytes: 16 * MiB } });
  expect(job?.read.io_bytes).toBeGreaterThanOrEqual(16 * MiB);
});

itWith(["fio", "qemu-io"], "fio notices one byte that was changed: this check can fail", async () => {
  using folder = tempDir();
  const image = folder.file("disk.img");
  makeImage(image, 4 * MiB);
  await using server = await startServe({ image, socket: folder.file("s") });
  const job = ["fio", "--name=job", "--ioengine=nbd", "--thread", `--aux-path=${folder.path}`, `--uri=${server.uri}`];
  job.push("--rw=write", "--bs=64k", "--size=4M", "--verify=crc32c", "--verify_state_save=0");
  await runOk([...job, "--do_verify=0"]);
  await runOk([...job, "--verify_only"]);
  const change = ["qemu-io", "-f", "raw", "-c", "write -P 0x5a 2000000 1", server.uri];
  await runOk(change);
  expect((await run([...job, "--verify_only"])).stderr).toContain("verify failed");
});

itWith(["fio"], "reads and writes of odd sizes, mixed, verify by crc32c", async () => {
  const sizes = ["--bsrange=512-128k", "--bs_unaligned"];
  const [job] = await fio("--rw=randrw", ...sizes, "--size=32M", "--iodepth=16", "--verify=crc32c", "--fsync=64");
  expect(job?.error).toBe(0);
  expect(job?.write.io_bytes).toBeGreaterThan(8 * MiB);
});

itWith(["fio"], "four jobs on connections of their own, each on its part of the disk, verify", async () => {
  const parts = ["--numjobs=4", "--size=8M", "--offset_increment=8M"];
  const jobs = await fio("--rw=randwrite", "--bs=16k", "--iodepth=16", "--verify=crc32c", "--fsync=50", ...parts);
  expect(jobs).toHaveLength(4);
  for (const job of jobs) expect(job).toMatchObject({ error: 0, write: { io_bytes: 8 * MiB } });
});

itWith(["fio"], "trims and writes, mixed, from three connections to the same place, all succeed", async () => {
  // Without verification: fio cannot tell which of two requests that are in flight together comes last.
  const jobs = await fio("--rw=randtrimwrite", "--bs=64k", "--size=32M", "--iodepth=16", "--numjobs=3");
  expect(jobs).toHaveLength(3);
  for (const job of jobs) {
    expect(job.error).toBe(0);
    expect(job.trim.io_bytes).toBeGreaterThan(0);
    expect(job.write.io_bytes).toBeGreaterThan(0);
  }
});
