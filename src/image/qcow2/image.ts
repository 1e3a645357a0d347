/** A qcow2 image as a block device. Whole clusters that are zeroed or discarded keep their place in the file. */
import type { OpenedFile } from "../tables/open-table-image.ts";
import { extentsOf, prefetchRuns, runsOf } from "../tables/reading.ts";
import { TableImage, type TableImageParts, type TableOperations } from "../tables/table-image.ts";
import { formatDetails } from "./details.ts";
import { clusterBytesOf, isDirty, type Qcow2Header } from "./header.ts";
import { readBytes, readNow } from "./reader.ts";
import { Qcow2Session } from "./session.ts";
import { newRun } from "./tables.ts";
import { discardRange, writeBytes, writeNow, writeZeroes } from "./writer.ts";

export type Qcow2Image = TableImage<Qcow2Session>;

export const QCOW2_OPERATIONS: TableOperations<Qcow2Session> = {
  readNow,
  read: readBytes,
  writeNow,
  write: writeBytes,
  writeZeroes,
  discard: discardRange,
  prefetch: (session, offset, length) => prefetchRuns(session, { offset, length }, newRun()),
  extents: (session, asked) => extentsOf(session, asked, newRun()),
  runs: (session, asked) => runsOf(session, asked, newRun()),
};

/** `header`: by which the device announces itself. For `openQcow2`. */
export function newQcow2Image(header: Qcow2Header, opened: OpenedFile): Qcow2Image {
  return new TableImage(qcow2Parts(header, opened));
}

/** `overlay`: the image is an overlay's store. */
export function qcow2Parts(header: Qcow2Header, opened: OpenedFile, overlay = false): TableImageParts<Qcow2Session> {
  const { file, reopen, backing, chaos, clock, cacheBytes } = opened;
  return {
    traits: {
      ...opened,
      sizeBytes: header.sizeBytes,
      clusterBytes: clusterBytesOf(header),
      dirty: isDirty(header),
      fastZero: opened.zeroesFast || header.version >= 3,
      formatDetails: formatDetails(header),
    },
    operations: QCOW2_OPERATIONS,
    file,
    reopen,
    load: (active) => Qcow2Session.load({ file: active, opened: header, backing, chaos, clock, cacheBytes, overlay }),
  };
}
