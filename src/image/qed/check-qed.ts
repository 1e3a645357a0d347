/** Checking a QED image that nobody uses: what `qemu-img check` tells, and repairs. */

import { NO_CHAOS } from "../../env/chaos.ts";
import type { Env } from "../../env/env.ts";
import type { File } from "../../env/files.ts";
import { imageOpenErrorFrom } from "../errors.ts";
import type { CheckReport } from "../tables/check-report.ts";
import { ImageFile } from "../tables/image-file.ts";
import { Turns } from "../tables/turns.ts";
import { checkTables } from "./check.ts";
import { EntryRules } from "./entry-rules.ts";
import { QedFlags } from "./flags.ts";
import { geometryOf, isDirty, namesBacking } from "./header.ts";
import { readHeader } from "./open.ts";
import { readL1 } from "./tables.ts";

export interface CheckQedOptions {
  readonly path: string;
  /** Clears wrong entries, and NEED_CHECK if nothing wrong is left. */
  readonly repair?: boolean;
}

export interface QedCheckReport extends CheckReport {
  /** NEED_CHECK was set when the check began. */
  readonly dirty: boolean;
}

/** Locks the image meanwhile. Throws `ImageOpenError`, or `BlockError` when it cannot be read or repaired. */
export async function checkQed(env: Pick<Env, "files">, options: CheckQedOptions): Promise<QedCheckReport> {
  const { path, repair = false } = options;
  let file: File | undefined;
  try {
    file = await env.files.open({ path, writable: repair });
    await file.lock(repair ? "exclusive" : "shared");
    return await checkFile(file, repair);
  } catch (error) {
    throw imageOpenErrorFrom(error, path);
  } finally {
    await file?.close();
  }
}

async function checkFile(file: File, repair: boolean): Promise<QedCheckReport> {
  const { header, fileBytes } = await readHeader(file);
  const geometry = geometryOf(header);
  const image = new ImageFile(file, fileBytes);
  const allocatedEnd = Math.floor(fileBytes / geometry.clusterBytes) * geometry.clusterBytes;
  const rules = new EntryRules(geometry, () => allocatedEnd);
  await rules.setL2Tables(await readL1(image, geometry), new Turns(image));
  const flags = new QedFlags({ file: image, header, ordered: namesBacking(header), chaos: NO_CHAOS });
  if (repair) await flags.preparation.prepare();
  const report = await checkTables({ file: image, geometry, rules, repair });
  if (repair && report.corruptions === 0 && report.checkErrors === 0) {
    await image.sync();
    if (flags.needCheck) await flags.clear();
  }
  if (repair) await image.sync();
  return { ...report, dirty: isDirty(header) };
}
