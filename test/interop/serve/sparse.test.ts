/** What happens to the space behind an image: trims and zeroes give it back, NO_HOLE keeps or takes it. */
import { statSync } from "node:fs";
import { expect } from "vitest";
import { NbdHandle } from "../../support/libnbd.ts";
import { imageDifference, makeImage, pattern } from "../../support/patterns.ts";
import { runOk } from "../../support/run.ts";
import { startServe } from "../../support/serve-process.ts";
import { tempDir } from "../../support/temp-dir.ts";
import { itWith } from "../../support/tools.ts";
import { KiB, MiB } from "./layout.ts";

const SIZE = 16 * MiB;
const [FUA, NO_HOLE, FAST_ZERO] = [1, 2, 16];
/** Space that file systems take for their own records of a file. */
const SLACK_BYTES = 64 * KiB;

interface Disk extends AsyncDisposable {
  readonly image: string;
  readonly uri: string;
  readonly nbd: NbdHandle;
  allocatedBytes(): number;
}

/** An image full of pattern 1, or all hole, with a client on it. */
async function disk(filled: boolean, env: Readonly<Record<string, string>> = {}): Promise<Disk> {
  await using stack = new AsyncDisposableStack();
  const folder = stack.use(tempDir());
  const image = folder.file("disk.img");
  makeImage(image, SIZE, filled ? undefined : []);
  const server = stack.use(await startServe({ image, socket: folder.file("s"), env }));
  const before = [["add_meta_context", "base:allocation"]] as const;
  const nbd = stack.use(await NbdHandle.connect(server.uri, { before }));
  const owned = stack.move();
  return {
    image,
    uri: server.uri,
    nbd,
    // ext4 and XFS allocate when they write back: only then do the blocks show.
    allocatedBytes: () => statSync(image).blocks * 512,
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  };
}

function expectAbout(actual: number, expected: number): void {
  expect(actual).toBeGreaterThanOrEqual(expected);
  expect(actual).toBeLessThanOrEqual(expected + SLACK_BYTES);
}

const NEEDS = ["python3-libnbd"];

itWith(NEEDS, "a trim gives the space back, whole blocks of it, and reads as zeroes from then on", async () => {
  await using vm = await disk(true);
  await vm.nbd.call("trim", 4 * MiB, MiB);
  await vm.nbd.call("trim", 2 * MiB, 8 * MiB, FUA);
  expectAbout(vm.allocatedBytes(), SIZE - 6 * MiB);
  // A trim of part of a block cannot free it.
  await vm.nbd.call("trim", 1000, 12 * MiB + 100);
  expectAbout(vm.allocatedBytes(), SIZE - 6 * MiB);
  expect(await vm.nbd.blockStatus(8 * MiB, 0)).toEqual([["base:allocation", 0, [MiB, 0, 4 * MiB, 3, 3 * MiB, 0], 0]]);
});

itWith(NEEDS, "zeroes become holes, edges included", async () => {
  await using vm = await disk(true);
  await vm.nbd.call("zero", 4 * MiB, MiB + 5);
  await vm.nbd.call("flush");
  expectAbout(vm.allocatedBytes(), SIZE - 4 * MiB + 4 * KiB);
  const regions = [
    { offset: 0, length: SIZE, salt: 1 },
    { offset: MiB + 5, length: 4 * MiB, salt: 0 },
  ];
  expect(imageDifference(vm.image, SIZE, regions)).toBeUndefined();
});

itWith(NEEDS, "zeroes with NO_HOLE keep what is allocated and allocate what is not", async () => {
  {
    await using vm = await disk(true);
    await vm.nbd.call("zero", 4 * MiB, MiB, NO_HOLE);
    await vm.nbd.call("flush");
    expectAbout(vm.allocatedBytes(), SIZE);
    expect((await vm.nbd.read(4 * MiB, MiB)).equals(Buffer.alloc(4 * MiB))).toBe(true);
  }
  await using vm = await disk(false);
  expectAbout(vm.allocatedBytes(), 0);
  await vm.nbd.call("zero", 4 * MiB, MiB, NO_HOLE);
  await vm.nbd.call("flush");
  expectAbout(vm.allocatedBytes(), 4 * MiB);
  expect((await vm.nbd.read(SIZE, 0)).equals(Buffer.alloc(SIZE))).toBe(true);
});

itWith(NEEDS, "FAST_ZERO zeroes at once, or says ENOTSUP and changes nothing", async () => {
  // Without native calls there is no fast way.
  for (const env of [{}, { BLOCKFERRY_NO_NATIVE: "1" }]) {
    await using vm = await disk(true, env);
    for (const [i, flags] of [FAST_ZERO, FAST_ZERO | NO_HOLE, FAST_ZERO | FUA].entries()) {
      const offset = (1 + 4 * i) * MiB;
      const errno = await vm.nbd.errnoOf("zero", 2 * MiB, offset, flags);
      expect(errno).toBe("BLOCKFERRY_NO_NATIVE" in env ? "ENOTSUP" : "OK");
      const expected = errno === "OK" ? Buffer.alloc(2 * MiB) : pattern(offset, 2 * MiB);
      expect((await vm.nbd.read(2 * MiB, offset)).equals(expected)).toBe(true);
    }
  }
});

itWith(NEEDS, "a trimmed or zeroed range takes space again when it is written", async () => {
  await using vm = await disk(true);
  await vm.nbd.call("trim", SIZE, 0);
  expectAbout(vm.allocatedBytes(), 0);
  await vm.nbd.call("pwrite", pattern(3 * MiB, 64 * KiB, 2), 3 * MiB);
  await vm.nbd.call("flush");
  expectAbout(vm.allocatedBytes(), 64 * KiB);
  expect(await vm.nbd.blockStatus(SIZE, 0)).toEqual([
    ["base:allocation", 0, [3 * MiB, 3, 64 * KiB, 0, 13 * MiB - 64 * KiB, 3], 0],
  ]);
});

itWith(["qemu-io"], "QEMU's discard and unmapped zeroes free the space, its plain zeroes keep it", async () => {
  await using vm = await disk(true);
  const io = (command: string) => runOk(["qemu-io", "-f", "raw", "-d", "unmap", "-c", command, "-c", "flush", vm.uri]);
  await io("write -z 1M 2M");
  expectAbout(vm.allocatedBytes(), SIZE);
  await io("write -z -u 1M 2M");
  expectAbout(vm.allocatedBytes(), SIZE - 2 * MiB);
  await io("discard 8M 4M");
  expectAbout(vm.allocatedBytes(), SIZE - 6 * MiB);
});
