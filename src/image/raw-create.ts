/** Makes a new raw image: sparse, all holes, durable before the call returns. */
import { dirname } from "node:path";
import type { Env } from "../env/env.ts";
import type { File } from "../env/files.ts";
import { imageOpenErrorFrom } from "./errors.ts";

export interface CreateRawOptions {
  /** There must be nothing at this path. */
  readonly path: string;
  readonly sizeBytes: number;
}

/** The file is closed again. After a failure there is no file. Throws `ImageOpenError`. */
export async function createRaw(env: Pick<Env, "files">, { path, sizeBytes }: CreateRawOptions): Promise<void> {
  let file: File | undefined;
  try {
    file = await env.files.open({ path, writable: true, create: true });
    await file.truncate(sizeBytes);
    await file.dataSync();
    await file.close();
    await env.files.syncDirectory(dirname(path));
  } catch (error) {
    // Only what this call has made is removed: a file that was there before made `open` fail.
    if (file !== undefined) await discardFile(env, file);
    throw imageOpenErrorFrom(error, path, "create");
  }
}

/** What fails here is of less interest than what failed before. */
async function discardFile(env: Pick<Env, "files">, file: File): Promise<void> {
  await file.close().catch(() => undefined);
  await env.files.unlink(file.path).catch(() => undefined);
}
