/** Checking a qcow2 image that nobody uses: what `qemu-img check` tells, and repairs. */

import { NO_CHAOS } from "../../env/chaos.ts";
import type { Env } from "../../env/env.ts";
import type { File } from "../../env/files.ts";
import { ImageOpenError, imageOpenErrorFrom } from "../errors.ts";
import type { CheckReport } from "../tables/check-report.ts";
import { ImageFile } from "../tables/image-file.ts";
import { checkTables } from "./check.ts";
import { EntryRules } from "./entry-rules.ts";
import { Qcow2Flags } from "./flags.ts";
import { geometryOf, isCorrupt, isDirty } from "./header.ts";
import { type ReadHeader, readHeader } from "./open.ts";
import { Refcounts } from "./refcounts.ts";
import { fixedRegions } from "./session.ts";
import { Qcow2Tables } from "./tables.ts";

export interface CheckQcow2Options {
  readonly path: string;
  /**
   * "leaks": lost space is given back. "all": wrong entries and reference counts are put right too, and the dirty and
   * corrupt bits are cleared if nothing wrong is left.
   */
  readonly repair?: "leaks" | "all";
}

export interface Qcow2CheckReport extends CheckReport {
  /** The dirty bit was set when the check began. */
  readonly dirty: boolean;
  readonly corrupt: boolean;
}

/** Locks the image meanwhile. Throws `ImageOpenError`, or `BlockError` when it cannot be read or repaired. */
export async function checkQcow2(env: Pick<Env, "files">, options: CheckQcow2Options): Promise<Qcow2CheckReport> {
  const { path, repair = "none" } = options;
  let file: File | undefined;
  try {
    file = await env.files.open({ path, writable: repair !== "none" });
    await file.lock(repair === "none" ? "shared" : "exclusive");
    const read = await readHeader(file);
    checkCheckable(path, read);
    return await checkFile(new ImageFile(file, read.fileBytes), read, repair);
  } catch (error) {
    throw imageOpenErrorFrom(error, path);
  } finally {
    await file?.close();
  }
}

/** What refers to clusters in ways that are not walked would be taken for lost space. */
function checkCheckable(path: string, { header, bitmaps }: ReadHeader): void {
  if (header.snapshots === 0 && !bitmaps) return;
  const why = `it has ${bitmaps ? "persistent bitmaps" : "internal snapshots"}, which are not checked`;
  throw new ImageOpenError("unsupported-format", path, { why, hint: "use `qemu-img check`" });
}

/**
 * Nobody may use the image meanwhile. "leaks-and-behind": as "leaks", and what lies behind the end of the file is not
 * counted any more either, which is no matter until the file grows. Throws `BlockError`.
 */
export async function checkFile(
  image: ImageFile,
  { header }: ReadHeader,
  wanted: "none" | "leaks" | "all" | "leaks-and-behind",
): Promise<Qcow2CheckReport> {
  const repair = wanted === "leaks-and-behind" ? "leaks" : wanted;
  const geometry = geometryOf(header);
  const rules = new EntryRules(geometry, fixedRegions(header), () => image.sizeBytes);
  const refcounts = await Refcounts.load({ file: image, geometry, rules, chaos: NO_CHAOS }, header);
  await Qcow2Tables.load({ file: image, geometry, rules, dirty: false }, refcounts.blocks);
  const flags = new Qcow2Flags(image, header);
  if (repair !== "none") await flags.preparation.prepare();
  const shared = { file: image, geometry, header, rules, refcounts };
  const report = await checkTables({ ...shared, repair, shareDoubles: true });
  if (wanted === "leaks-and-behind") await refcounts.clearBehind();
  if (repair !== "none") await image.sync();
  if (repair === "all" && report.corruptions === 0 && report.checkErrors === 0) await flags.clearDirty();
  return { ...report, dirty: isDirty(header), corrupt: isCorrupt(header) };
}
