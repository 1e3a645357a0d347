/** A QED image as a block device. Space that data has taken stays taken: the tables cannot say otherwise. */
import type { OpenedFile } from "../tables/open-table-image.ts";
import { extentsOf, prefetchRuns, runsOf } from "../tables/reading.ts";
import { TableImage, type TableImageParts, type TableOperations } from "../tables/table-image.ts";
import { isDirty, type QedHeader } from "./header.ts";
import { readBytes, readNow } from "./reader.ts";
import { type OverlayMode, QedSession } from "./session.ts";
import { newRun } from "./tables.ts";
import { discardRange, writeBytes, writeNow, writeZeroes } from "./writer.ts";

export type QedImage = TableImage<QedSession>;

export const QED_OPERATIONS: TableOperations<QedSession> = {
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

interface QedOpened extends OpenedFile {
  readonly quietMs: number;
  readonly overlay?: OverlayMode;
}

/** `header`: by which the device announces itself. For `openQed`. */
export function newQedImage(header: QedHeader, opened: QedOpened): QedImage {
  return new TableImage(qedParts(header, opened));
}

/** With `overlay`, the image is an overlay's store. */
export function qedParts(header: QedHeader, opened: QedOpened): TableImageParts<QedSession> {
  const { file, reopen, backing, chaos, clock, cacheBytes, quietMs, overlay } = opened;
  const session = { opened: header, backing, chaos, clock, cacheBytes, quietMs, ...(overlay && { overlay }) };
  return {
    traits: {
      ...opened,
      sizeBytes: header.sizeBytes,
      clusterBytes: header.clusterBytes,
      dirty: isDirty(header),
      fastZero: opened.zeroesFast,
      formatDetails: undefined,
    },
    operations: QED_OPERATIONS,
    file,
    reopen,
    load: (active) => QedSession.load({ file: active, ...session }),
  };
}
