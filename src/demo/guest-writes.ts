/** What a virtual machine would do to its disk: small writes all over it, then a flush; looked at afterwards in the file. */
import { open } from "node:fs/promises";
import type { Env } from "../env/env.ts";
import { connectNbd } from "../nbd/client/connect.ts";
import { parseNbdUri } from "../nbd/uri.ts";
import { DemoFailure } from "./failure.ts";
import { BLOCK_BYTES, stamp } from "./sample-disk.ts";

const AT_ONCE = 16;

/** Block numbers, in the order they are written; no block twice. */
export function chooseBlocks(env: Pick<Env, "random">, count: number, blocksOfDisk: number): number[] {
  const chosen = new Set<number>();
  while (chosen.size < Math.min(count, blocksOfDisk)) chosen.add(Math.floor(env.random.next() * blocksOfDisk));
  return [...chosen];
}

/** Writes each block through the server, then flushes. */
export async function writeBlocks(env: Env, uri: string, blocks: readonly number[]): Promise<void> {
  const { address, exportName } = parseNbdUri(uri);
  await using client = await connectNbd(env, { address, exportName });
  let next = 0;
  const writeOn = async (): Promise<void> => {
    for (let block = blocks[next++]; block !== undefined; block = blocks[next++]) {
      await client.write(block * BLOCK_BYTES, contentOf(block));
    }
  };
  await Promise.all(Array.from({ length: AT_ONCE }, writeOn));
  await client.flush();
}

/** Compares the blocks with what the file holds. The server is not asked. */
export async function verifyBlocks(path: string, blocks: readonly number[]): Promise<void> {
  await using file = await open(path, "r");
  const found = Buffer.allocUnsafe(BLOCK_BYTES);
  for (const block of blocks) {
    await file.read(found, 0, BLOCK_BYTES, block * BLOCK_BYTES);
    if (found.equals(contentOf(block))) continue;
    const why = `the block at byte ${block * BLOCK_BYTES} of ${path} is not what was written`;
    throw new DemoFailure("written data are not in the image", why, "this is a defect of blockferry; please report it");
  }
}

/** Unlike what the sample disk has there. */
function contentOf(block: number): Buffer {
  const content = Buffer.alloc(BLOCK_BYTES, `written by the demo, block ${block}. `);
  stamp(content, 0, -1 - block + 2 ** 40);
  return content;
}
