/** Disks of a migration as the command line names them: `vda=/vm/disk.qcow2,format=qcow2,backing=/vm/base.raw`. Pure. */
import { resolve } from "node:path";
import type { ChainLink } from "../../image/chain.ts";
import { DISKS_MAX, DiskName } from "../../migrate/owner-record.ts";
import { usageError } from "../cli-error.ts";
import { parseImageSpec } from "../image/image-spec.ts";

export interface DiskPlan {
  /** Of the exports on both sides. */
  readonly name: string;
  /** As it was written: for the line that starts the other side. */
  readonly spec: string;
  /** The image first, with an absolute path, then what it lies over. */
  readonly chain: readonly [ChainLink, ...ChainLink[]];
}

export function planDisks(specs: readonly string[], directory: string): [DiskPlan, ...DiskPlan[]] {
  const [first, ...rest] = specs.map((spec) => planDisk(spec, directory));
  if (first === undefined) throw usageError("there is no disk", "none was named", "add NAME=IMAGE, as in vda=disk.raw");
  const disks: [DiskPlan, ...DiskPlan[]] = [first, ...rest];
  if (disks.length > DISKS_MAX) {
    const why = `${disks.length} were named, and a migration has ${DISKS_MAX} at most`;
    throw usageError("there are too many disks", why, "move them in several migrations");
  }
  for (const key of ["name", "image"] as const) {
    const seen = new Set<string>();
    for (const disk of disks) {
      const value = key === "name" ? disk.name : disk.chain[0].path;
      if (seen.has(value)) throw usageError("cannot use these disks", `${value} is named twice`, "name each disk once");
      seen.add(value);
    }
  }
  return disks;
}

function planDisk(spec: string, directory: string): DiskPlan {
  const equals = spec.indexOf("=");
  const name = spec.slice(0, Math.max(0, equals));
  if (!DiskName.safeParse(name).success) {
    const why = `${JSON.stringify(spec)} is not NAME=IMAGE`;
    throw usageError(
      "cannot use a disk",
      why,
      'a NAME has letters, digits, ".", "_" and "-", 48 at most: vda=disk.raw',
    );
  }
  const [top, ...below] = parseImageSpec(spec.slice(equals + 1));
  const absolute = (link: ChainLink): ChainLink => ({ ...link, path: resolve(directory, link.path) });
  return { name, spec, chain: [absolute(top), ...below.map(absolute)] };
}
