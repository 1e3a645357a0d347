/** Makes a new raw image: sparse, all holes, durable before the call returns. */
import type { Env } from "../env/env.ts";
import { createImageFile } from "./tables/new-image-file.ts";

export interface CreateRawOptions {
  /** There must be nothing at this path. */
  readonly path: string;
  readonly sizeBytes: number;
}

/** The file is closed again. After a failure there is no file. Throws `ImageOpenError`. */
export async function createRaw(env: Pick<Env, "files">, { path, sizeBytes }: CreateRawOptions): Promise<void> {
  await createImageFile(env, path, { fileBytes: sizeBytes, parts: [] });
}
