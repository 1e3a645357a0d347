/** What `dest` was asked to do, checked as a whole. Nothing is opened here. */
import type { Address } from "../../env/links.ts";
import { chooseFormat, type ImageFormat } from "../../image/format.ts";
import { usageError } from "../cli-error.ts";
import { parseLinkAddress } from "../migration/address.ts";
import type { DiskPlan } from "../migration/disk-spec.ts";
import type { MigrationFlags } from "../migration/flags.ts";
import { checkLinkExposure, type MigrationAround, type MigrationPlan, planMigration } from "../migration/plan.ts";
import type { ProgressForm } from "../progress/option.ts";

export interface DestFlags extends MigrationFlags {
  readonly from?: string;
  readonly mode?: "hybrid" | "postcopy" | "precopy";
  /** Null: unlimited. */
  readonly rate?: number | null;
  readonly onSourceLoss?: "stall" | "eio" | "pause";
  readonly sourceLossDeadline?: number;
  readonly earlyReads?: "passthrough" | "refuse";
  readonly overwriteDevice?: true | boolean;
  readonly progress?: ProgressForm;
}

export interface DestDiskPlan {
  readonly name: string;
  readonly image: string;
  readonly format: ImageFormat;
  /** To be shown to the user. */
  readonly notice: string | undefined;
}

export interface DestPlan extends MigrationPlan {
  /** Where the source's link is. */
  readonly from: Address;
  readonly images: readonly DestDiskPlan[];
  readonly mode: "hybrid" | "postcopy" | "precopy";
  readonly rateBytesPerSecond: number | undefined;
  readonly onSourceLoss: "stall" | "eio";
  /** QEMU stops the guest at an error, and we let it go on when the source is back. */
  readonly pausesGuest: boolean;
  readonly sourceLossDeadlineMs: number | undefined;
  readonly earlyReads: "passthrough" | "refuse";
  /** What is on a device may be written over. */
  readonly overwriteDevice: boolean;
  readonly progress: ProgressForm;
}

const SOURCE_LOSS_DEADLINE_MS = 30_000;

export function planDest(words: readonly string[], flags: DestFlags, around: MigrationAround): DestPlan {
  const [from, ...specs] = flags.from === undefined ? words : [flags.from, ...words];
  if (from === undefined) {
    throw usageError(
      "cannot start a destination",
      "the source's address is missing",
      "see what `blockferry source` prints",
    );
  }
  const plan = planMigration("dest", [...(flags.disk ?? []), ...specs], flags, around);
  const address = parseLinkAddress(from, "the source's address", around.directory);
  checkLinkExposure(address, plan.tls);
  const { onSourceLoss = "stall", sourceLossDeadline, rate } = flags;
  if (sourceLossDeadline !== undefined && onSourceLoss === "stall") {
    const why = "with --on-source-loss=stall, reads wait for as long as the source is away";
    throw usageError("cannot use --source-loss-deadline", why, "add --on-source-loss=eio or pause, or leave it out");
  }
  return {
    ...plan,
    from: address,
    images: plan.disks.map(planImage),
    mode: flags.mode ?? "hybrid",
    rateBytesPerSecond: rate ?? undefined,
    // A VMM that is set to stop at an error pauses its guest by itself; with --qmp we let it go on.
    pausesGuest: onSourceLoss === "pause",
    onSourceLoss: onSourceLoss === "pause" ? "eio" : onSourceLoss,
    sourceLossDeadlineMs: onSourceLoss === "stall" ? undefined : (sourceLossDeadline ?? SOURCE_LOSS_DEADLINE_MS),
    earlyReads: flags.earlyReads ?? "passthrough",
    overwriteDevice: flags.overwriteDevice ?? false,
    progress: flags.progress ?? { kind: "auto" },
  };
}

function planImage({ name, spec, chain: [top, ...below] }: DiskPlan): DestDiskPlan {
  if (below.length > 0) {
    const why = "the disk comes whole, and lies over nothing here";
    throw usageError(`cannot use ${spec}`, why, "leave backing= out");
  }
  const { format, notice } = chooseFormat(top.path, top.format);
  if (format.overlay === undefined) {
    throw usageError(`cannot make ${top.path}`, `a disk cannot arrive as ${format.name}`, "choose raw, qed or qcow2");
  }
  return { name, image: top.path, format, notice };
}
