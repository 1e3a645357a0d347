/** The last word: every byte of an image, read from the file, against what the guest has left. */
import { open } from "node:fs/promises";
import { BLOCK_BYTES, type DiskModel } from "./disk-model.ts";
import { DemoFailure } from "./failure.ts";

const PIECE_BLOCKS = 256;

/** Rejects with `DemoFailure` at the first block that is not what it should be. No server is asked. */
export async function verifyImage(path: string, model: DiskModel): Promise<void> {
  await using file = await open(path, "r");
  const { size } = await file.stat();
  if (size !== model.sizeBytes) {
    throw wrong(`${path} has ${size} bytes instead of ${model.sizeBytes}`);
  }
  const found = Buffer.allocUnsafe(PIECE_BLOCKS * BLOCK_BYTES);
  for (let block = 0; block < model.blocks; block += PIECE_BLOCKS) {
    const count = Math.min(PIECE_BLOCKS, model.blocks - block);
    await file.read(found, 0, count * BLOCK_BYTES, block * BLOCK_BYTES);
    const expected = model.content(block, count);
    if (expected.equals(found.subarray(0, expected.length))) continue;
    for (let index = 0; index < count; index++) {
      const at = index * BLOCK_BYTES;
      const same = expected.subarray(at, at + BLOCK_BYTES).equals(found.subarray(at, at + BLOCK_BYTES));
      if (!same) throw wrong(`the block at byte ${(block + index) * BLOCK_BYTES} of ${path} is another one`);
    }
  }
}

function wrong(why: string): DemoFailure {
  return new DemoFailure(
    "the disk has not arrived as it should be",
    why,
    "this is a defect of blockferry; please report it",
  );
}
