/** qemu-io as a guest would: patterns, zeroes, discards, FUA, any alignment; then the file is read directly. */
import { expect } from "vitest";
import { fileBytes, firstDifference, imageDifference, makeImage, pattern } from "../../support/patterns.ts";
import { run, runOk } from "../../support/run.ts";
import { Prng, runSeed } from "../../support/seed.ts";
import { type ServeProcess, startServe } from "../../support/serve-process.ts";
import { type TempDir, tempDir } from "../../support/temp-dir.ts";
import { itWith } from "../../support/tools.ts";
import { KiB, MiB } from "./layout.ts";

const IMAGE_BYTES = 16 * MiB;

interface Guest extends AsyncDisposable {
  readonly image: string;
  readonly server: ServeProcess;
  /** Runs qemu-io commands in one session; what it prints. */
  io(...commands: string[]): Promise<string>;
}

/** An image full of pattern 1, served. */
async function guest(sizeBytes = IMAGE_BYTES): Promise<Guest> {
  const folder: TempDir = tempDir();
  const image = folder.file("disk.img");
  makeImage(image, sizeBytes);
  const server = await startServe({ image, socket: folder.file("s") });
  return {
    image,
    server,
    io: (...commands) => runOk(qemuIo(server, commands)),
    [Symbol.asyncDispose]: async () => {
      await server.kill();
      folder[Symbol.dispose]();
    },
  };
}

function qemuIo(server: ServeProcess, commands: readonly string[]): string[] {
  // The cache mode decides who asks for what: writeback leaves flushes and FUA to the commands.
  return ["qemu-io", "-f", "raw", "-t", "writeback", "-d", "unmap", ...commands.flatMap((c) => ["-c", c]), server.uri];
}

itWith(
  ["qemu-io"],
  "what was written at unaligned offsets is read back, and its neighbours are untouched",
  async () => {
    await using vm = await guest();
    await vm.io("write -P 0xa1 1 1", "write -P 0xa2 4095 2", "write -P 0xa3 1048575 70001", "flush");
    await vm.io("read -P 0xa1 1 1", "read -P 0xa2 4095 2", "read -P 0xa3 1048575 70001");
    const expected = pattern(0, 2 * MiB);
    expected
      .fill(0xa1, 1, 2)
      .fill(0xa2, 4095, 4097)
      .fill(0xa3, MiB - 1, MiB - 1 + 70_001);
    expect(firstDifference(fileBytes(vm.image, 0, 2 * MiB), expected)).toBeUndefined();
    const rest = fileBytes(vm.image, 2 * MiB, IMAGE_BYTES - 2 * MiB);
    expect(firstDifference(rest, pattern(2 * MiB, IMAGE_BYTES - 2 * MiB))).toBeUndefined();
  },
);

itWith(["qemu-io"], "a read that finds another pattern fails: this check can fail", async () => {
  await using vm = await guest();
  const result = await run(qemuIo(vm.server, ["write -P 0xa1 0 4k", "read -P 0xa2 0 4k"]));
  expect(`${result.status} ${result.stdout}`).toMatch(/^1 [\s\S]*Pattern verification failed/);
});

itWith(
  ["qemu-io"],
  "zeroes, with and without unmap, with FUA and unaligned, read as zeroes, and only those",
  async () => {
    await using vm = await guest();
    await vm.io("write -z 1M 1M", "write -z -u 3M 1M", "write -z -f 5000001 70001", "write -z -u -f 6000001 70001");
    await vm.io("read -P 0 1M 1M", "read -P 0 3M 1M", "read -P 0 5000001 70001", "read -P 0 6000001 70001");
    const zeroed = [
      { offset: MiB, length: MiB, salt: 0 },
      { offset: 3 * MiB, length: MiB, salt: 0 },
      { offset: 5_000_001, length: 70_001, salt: 0 },
      { offset: 6_000_001, length: 70_001, salt: 0 },
    ];
    const all = [{ offset: 0, length: IMAGE_BYTES, salt: 1 }, ...zeroed];
    expect(imageDifference(vm.image, IMAGE_BYTES, all)).toBeUndefined();
  },
);

itWith(["qemu-io"], "a discard changes its range alone, and a write after it is whole", async () => {
  await using vm = await guest();
  await vm.io(
    "discard 2M 2M",
    "discard 7000001 4097",
    "write -P 0x77 2100000 100",
    "flush",
    "read -P 0x77 2100000 100",
  );
  expect(fileBytes(vm.image, 2_100_000, 100).equals(Buffer.alloc(100, 0x77))).toBe(true);
  for (const [from, to] of [
    [0, 2 * MiB],
    [4 * MiB, 7_000_001],
    [7_004_098, IMAGE_BYTES],
  ] as const) {
    expect(firstDifference(fileBytes(vm.image, from, to - from), pattern(from, to - from))).toBeUndefined();
  }
});

itWith(["qemu-io"], "FUA writes and many requests in flight land where they should", async () => {
  await using vm = await guest();
  const requests = Array.from({ length: 64 }, (_, i) => `aio_write -P ${i + 1} ${i * 100_001} 65537`);
  await vm.io(...requests, "aio_flush", "write -f -P 0xf1 12M 1M");
  const expected = pattern(0, 13 * MiB);
  for (let i = 0; i < 64; i++) expected.fill(i + 1, i * 100_001, i * 100_001 + 65_537);
  expected.fill(0xf1, 12 * MiB);
  expect(firstDifference(fileBytes(vm.image, 0, 13 * MiB), expected)).toBeUndefined();
});

itWith(["qemu-io"], "past the end everything is refused, and the last byte is reachable", async () => {
  await using vm = await guest(MiB + 1000);
  const end = MiB + 1000;
  // QEMU rounds the size up to its own sectors (and answers reads there itself); writes there are ours to refuse.
  for (const command of [`write ${end} 1`, `write ${end - 1} 2`, `write -z ${end - 10} 11`, `read ${2 * MiB} 1`]) {
    const result = await run(qemuIo(vm.server, [command]));
    expect(result.status, command).toBe(1);
  }
  await vm.io(`write -P 0x66 ${end - 1} 1`, `read -P 0x66 ${end - 1} 1`);
  expect(fileBytes(vm.image, end - 1, 1)[0]).toBe(0x66);
  expect(firstDifference(fileBytes(vm.image, 0, end - 1), pattern(0, end - 1))).toBeUndefined();
});

interface Step {
  readonly command: string;
  readonly apply: (disk: Buffer) => void;
}

/** One random change, as qemu-io says it and as it should show. Discards are left out: they may or may not show. */
function randomStep(rng: Prng, sizeBytes: number): Step {
  const length = rng.chance(0.2) ? rng.integer(1, 600 * KiB) : rng.integer(1, 9000);
  const offset = rng.chance(0.3) ? rng.integer(0, 4000) * 512 : rng.integer(0, sizeBytes - length);
  const fua = rng.chance(0.2) ? "-f " : "";
  const range = (disk: Buffer) => disk.subarray(offset, offset + length);
  if (rng.chance(0.35)) {
    const unmap = rng.chance(0.5) ? "-u " : "";
    return { command: `write -z ${unmap}${fua}${offset} ${length}`, apply: (disk) => range(disk).fill(0) };
  }
  const byte = rng.integer(1, 255);
  return { command: `write -P ${byte} ${fua}${offset} ${length}`, apply: (disk) => range(disk).fill(byte) };
}

const RANDOM_TITLE = "150 random writes and zeroes leave exactly what they should";

itWith(["qemu-io"], RANDOM_TITLE, async () => {
  const rng = new Prng(runSeed(), RANDOM_TITLE);
  const sizeBytes = 3 * MiB + 77;
  await using vm = await guest(sizeBytes);
  const disk = pattern(0, sizeBytes);
  const steps = Array.from({ length: 150 }, () => randomStep(rng, sizeBytes));
  for (const step of steps) step.apply(disk);
  await vm.io(...steps.map((step) => step.command));
  expect(firstDifference(fileBytes(vm.image, 0, sizeBytes), disk)).toBeUndefined();
});
