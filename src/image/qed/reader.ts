/** Reading an open QED image: data from the file, the rest from the backing, or zeroes. */
import { readBacking, readBackingNow } from "../tables/backing.ts";
import type { QedSession } from "./session.ts";
import { newRun } from "./tables.ts";

/** For calls that await nothing. */
const scratch = newRun();

/** Fills all of `into` from what is in memory: its length, or −1. Throws `ImageCorruptError`. */
export function readNow(session: QedSession, offset: number, into: Uint8Array): number {
  const { tables, file, backing } = session;
  for (let done = 0; done < into.length; ) {
    if (!tables.lookupNow(offset + done, into.length - done, scratch)) return -1;
    const { kind, length, fileOffset } = scratch;
    const part = length === into.length ? into : into.subarray(done, done + length);
    if (kind === "data") {
      if (file.file.readNow(fileOffset, part) === -1) return -1;
    } else if (kind === "unallocated" && backing !== undefined) {
      if (readBackingNow(backing, offset + done, part) === -1) return -1;
    } else {
      part.fill(0);
    }
    done += length;
  }
  return into.length;
}

export async function readBytes(session: QedSession, offset: number, into: Uint8Array): Promise<void> {
  const { tables, file, backing } = session;
  const run = newRun();
  for (let done = 0; done < into.length; ) {
    await tables.lookup(offset + done, into.length - done, run);
    const part = into.subarray(done, done + run.length);
    if (run.kind === "data") await file.read(run.fileOffset, part);
    else if (run.kind === "unallocated" && backing !== undefined) await readBacking(backing, offset + done, part);
    else part.fill(0);
    done += part.length;
  }
}
