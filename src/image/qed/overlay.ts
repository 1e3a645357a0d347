/** A QED image as the store of an overlay. */
import type { OverlayStore } from "../../block/overlay-store.ts";
import type { Env } from "../../env/env.ts";
import type { ImageEnv } from "../image.ts";
import {
  type CreateOverlayImageOptions,
  createOverlayImage,
  type OpenOverlayImageOptions,
  openOverlayImage,
} from "../tables/overlay-image.ts";
import { newQedContent } from "./create.ts";
import { geometryOf, isDirty } from "./header.ts";
import { qedParts } from "./image.ts";
import { reclaimLostSpace } from "./lost-space.ts";
import { QUIET_MS, readHeader } from "./open.ts";

/** Makes an image that carries the uuid, durable with its directory. Throws `ImageOpenError`. */
export async function createQedOverlay(env: Pick<Env, "files">, options: CreateOverlayImageOptions): Promise<void> {
  await createOverlayImage(env, options, newQedContent);
}

/** Opens and locks the image. Throws `ImageOpenError` when it does not carry the uuid, unless it is complete. */
export async function openQedOverlay(env: ImageEnv, options: OpenOverlayImageOptions): Promise<OverlayStore> {
  return await openOverlayImage(env, options, {
    readHeader,
    // One that others have left dirty gets its check as any image does.
    reclaim: async (image, { header }, rewrite) => {
      const skipped = env.chaos?.on("qed/rewrite-skipped") ?? false;
      return isDirty(header) ? [] : await reclaimLostSpace(image, geometryOf(header), rewrite && !skipped);
    },
    make: ({ header }, opened, unused) => qedParts(header, { ...opened, quietMs: QUIET_MS, overlay: { unused } }),
  });
}
