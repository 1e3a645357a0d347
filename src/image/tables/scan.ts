/** Reading a table once from end to end: for checks, which must see the file and not what is cached of it. */
import { BlockError } from "../../block/error.ts";
import { isZero } from "../../util/zeroes.ts";
import { blockErrorFrom } from "../errors.ts";
import type { ImageFile } from "./image-file.ts";

/** How much of a table is in memory at a time. */
export const SCAN_BYTES = 128 * 1024;

const ENTRY_BYTES = 8;

export interface ScanPart {
  /** Where in the file these bytes are. */
  readonly at: number;
  /** Valid during the call. */
  readonly bytes: Buffer;
}

/** For whoever scans many tables. */
export function newScanBuffer(): Buffer {
  return Buffer.allocUnsafeSlow(SCAN_BYTES);
}

/**
 * Calls `visit` for every part of [offset, offset + length) that is not all zeroes; a file system's holes are skipped.
 * `memory`: for the parts, one after the other.
 */
export async function scanTable(
  file: ImageFile,
  { offset, length }: { offset: number; length: number },
  visit: (part: ScanPart) => Promise<void>,
  memory?: Buffer,
): Promise<void> {
  const end = offset + length;
  const buffer = memory ?? Buffer.allocUnsafeSlow(Math.min(SCAN_BYTES, length));
  let dataEnd = offset;
  for (let at = offset; at < end; ) {
    if (at >= dataEnd) {
      const run = await runAt(file, at);
      if (run.kind === "hole") {
        at = Math.floor(Math.min(run.end, end) / ENTRY_BYTES) * ENTRY_BYTES;
        // A hole that ends within an entry: that entry is read.
        dataEnd = run.end > at ? at + ENTRY_BYTES : at;
        continue;
      }
      dataEnd = Math.ceil(run.end / ENTRY_BYTES) * ENTRY_BYTES;
    }
    const bytes = buffer.subarray(0, Math.min(buffer.length, Math.min(dataEnd, end) - at));
    await file.read(at, bytes);
    if (!isZero(bytes)) await visit({ at, bytes });
    at += bytes.length;
  }
}

/**
 * Writes what a table holds once more. After a sync that failed, the page cache has what the disk lacks and takes it for
 * clean: whoever opens the file next finds the table whole, and could sync for ever without its being written.
 */
export async function rewriteTable(file: ImageFile, range: { offset: number; length: number }): Promise<void> {
  await scanTable(file, range, ({ at, bytes }) => file.write(at, bytes));
}

async function runAt(file: ImageFile, at: number): Promise<{ kind: "data" | "hole"; end: number }> {
  try {
    const run = await file.file.extentAt(at);
    if (run.end > at) return run;
  } catch (error) {
    throw blockErrorFrom(error);
  }
  throw new BlockError("io", `${file.path} ends at ${at}: bytes are missing`);
}
