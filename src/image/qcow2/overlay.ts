/** A qcow2 image as the store of an overlay. */
import type { OverlayStore } from "../../block/overlay-store.ts";
import type { Env } from "../../env/env.ts";
import type { ImageEnv } from "../image.ts";
import type { ImageFile } from "../tables/image-file.ts";
import {
  type CreateOverlayImageOptions,
  createOverlayImage,
  type OpenOverlayImageOptions,
  openOverlayImage,
} from "../tables/overlay-image.ts";
import { rewriteTable, scanTable } from "../tables/scan.ts";
import { u64FromHalves } from "../tables/u64.ts";
import { checkFile } from "./check-qcow2.ts";
import { newQcow2Content } from "./create.ts";
import { QCOW2_ENTRY_BYTES } from "./entries.ts";
import { clusterBytesOf, isDirty, type Qcow2Header } from "./header.ts";
import { qcow2Parts } from "./image.ts";
import { checkWritable, readHeader } from "./open.ts";

/** Makes an image that carries the uuid, durable with its directory. Throws `ImageOpenError`. */
export async function createQcow2Overlay(env: Pick<Env, "files">, options: CreateOverlayImageOptions): Promise<void> {
  await createOverlayImage(env, options, newQcow2Content);
}

/** Opens and locks the image. Throws `ImageOpenError` when it does not carry the uuid, unless it is complete. */
export async function openQcow2Overlay(env: ImageEnv, options: OpenOverlayImageOptions): Promise<OverlayStore> {
  return await openOverlayImage(env, options, {
    readHeader: async (file) => {
      const read = await readHeader(file);
      checkWritable(options.path, read);
      return read;
    },
    reclaim: async (image, read, rewrite) => {
      // One that others have left dirty gets its check as any image does.
      if (isDirty(read.header)) return;
      if (rewrite && env.chaos?.on("qcow2/rewrite-skipped") !== true) await rewriteTables(image, read.header);
      await checkFile(image, read, "leaks-and-behind");
    },
    make: ({ header }, opened) => qcow2Parts(header, opened, true),
  });
}

/** They are durable when the check has synced. */
async function rewriteTables(file: ImageFile, header: Qcow2Header): Promise<void> {
  const clusterBytes = clusterBytesOf(header);
  const { l1Offset: offset, l1Entries, refcountTableOffset, refcountTableClusters } = header;
  const l1 = { offset, length: l1Entries * QCOW2_ENTRY_BYTES };
  const refcountTable = { offset: refcountTableOffset, length: refcountTableClusters * clusterBytes };
  const end = file.sizeBytes;
  await rewriteTable(file, { offset: 0, length: Math.min(clusterBytes, end) });
  for (const table of [l1, refcountTable]) {
    await rewriteTable(file, table);
    await eachOffset(file, table, async (below) => {
      // Others are wrong, and found to be.
      const inside = below >= clusterBytes && below < end;
      if (inside) await rewriteTable(file, { offset: below, length: Math.min(clusterBytes, end - below) });
    });
  }
}

/** What the entries of a table of tables point to. */
async function eachOffset(
  file: ImageFile,
  table: { offset: number; length: number },
  act: (offset: number) => Promise<void>,
): Promise<void> {
  await scanTable(file, table, async ({ bytes }) => {
    for (let at = 0; at + QCOW2_ENTRY_BYTES <= bytes.length; at += QCOW2_ENTRY_BYTES) {
      const place = u64FromHalves(bytes.readUInt32BE(at + 4), bytes.readUInt32BE(at) & 0x00ff_ffff);
      if (place > 0) await act(place - (place % 512));
    }
  });
}
