/** Reading an open qcow2 image: data from the file, the rest from the backing, or zeroes. */
import { readBacking, readBackingNow } from "../tables/backing.ts";
import { NotCompressedError } from "./compressed.ts";
import type { Qcow2Session } from "./session.ts";
import { newRun, type Run } from "./tables.ts";

/** For calls that await nothing. */
const scratch = newRun();

/** Fills all of `into` from what is in memory: its length, or −1. Throws `ImageCorruptError`. */
export function readNow(session: Qcow2Session, offset: number, into: Uint8Array): number {
  for (let done = 0; done < into.length; ) {
    if (!session.tables.lookupNow(offset + done, into.length - done, scratch)) return -1;
    const { length } = scratch;
    const part = length === into.length ? into : into.subarray(done, done + length);
    if (!readRunNow(session, offset + done, part)) return -1;
    done += length;
  }
  return into.length;
}

/** What `scratch` describes. */
function readRunNow({ file, backing, compressed }: Qcow2Session, offset: number, part: Uint8Array): boolean {
  switch (scratch.kind) {
    case "data":
      return file.file.readNow(scratch.fileOffset, part) !== -1;
    case "compressed":
      return compressed.readNow(offset, part);
    case "unallocated":
      if (backing !== undefined) return readBackingNow(backing, offset, part) !== -1;
      break;
    case "zero":
      break;
  }
  part.fill(0);
  return true;
}

export async function readBytes(session: Qcow2Session, offset: number, into: Uint8Array): Promise<void> {
  const run = newRun();
  for (let done = 0; done < into.length; ) {
    await session.tables.lookup(offset + done, into.length - done, run);
    const part = into.subarray(done, done + run.length);
    if (await readRun(session, run, { offset: offset + done, part })) done += part.length;
  }
}

/** False: what `run` says is not true any more. */
async function readRun(
  { file, backing, compressed }: Qcow2Session,
  { kind, fileOffset }: Run,
  { offset, part }: { offset: number; part: Uint8Array },
): Promise<boolean> {
  // The last cluster of the file need not be whole.
  if (kind === "data") await file.readPadded(fileOffset, part);
  else if (kind === "compressed") return await readCompressed(compressed, offset, part);
  else if (kind === "unallocated" && backing !== undefined) await readBacking(backing, offset, part);
  else part.fill(0);
  return true;
}

async function readCompressed(
  compressed: Qcow2Session["compressed"],
  offset: number,
  part: Uint8Array,
): Promise<boolean> {
  try {
    await compressed.read(offset, part);
    return true;
  } catch (error) {
    if (error instanceof NotCompressedError) return false;
    throw error;
  }
}
