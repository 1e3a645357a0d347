/** The tables that are held in memory, read from end to end: a piece at a time, since they may be long. */
import type { ImageFile } from "../tables/image-file.ts";
import { QCOW2_ENTRY_BYTES } from "./entries.ts";

const PIECE_BYTES = 128 * 1024;

/** Calls `visit` for each of the `count` entries from `offset` on, `at` bytes into `view`. They must be in the file. */
export async function readTable(
  file: ImageFile,
  { offset, count }: { offset: number; count: number },
  visit: (view: DataView, at: number, index: number) => void,
): Promise<void> {
  const buffer = Buffer.allocUnsafeSlow(Math.min(PIECE_BYTES, count * QCOW2_ENTRY_BYTES));
  const view = new DataView(buffer.buffer, buffer.byteOffset, buffer.byteLength);
  for (let index = 0; index < count; ) {
    const some = Math.min(count - index, buffer.length / QCOW2_ENTRY_BYTES);
    await file.read(offset + index * QCOW2_ENTRY_BYTES, buffer.subarray(0, some * QCOW2_ENTRY_BYTES));
    for (let i = 0; i < some; i++) visit(view, i * QCOW2_ENTRY_BYTES, index + i);
    index += some;
  }
}
