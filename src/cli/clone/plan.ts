/** What `clone` was asked to do, checked as a whole. Nothing is opened here. */
import { resolve } from "node:path";
import { chooseFormat, type ImageFormat } from "../../image/format.ts";
import { usageError } from "../cli-error.ts";
import type { ProgressForm } from "../progress/option.ts";
import { planServe, type ServeFlags, type ServePlan, type Surroundings } from "../serving/plan.ts";
import { planSource, type SourcePlan } from "./source.ts";

export interface CloneFlags extends Omit<ServeFlags, "readOnly" | "run" | "json"> {
  /** Null: unlimited. */
  readonly rate?: number | null;
  /** Null: it follows the path. */
  readonly window?: number | null;
  readonly recordTrace?: string;
  readonly replayTrace?: string;
  readonly onSourceLoss?: "stall" | "eio";
  readonly sourceLossDeadline?: number;
  readonly exitWhenHydrated?: true | boolean;
  readonly clusterSize?: number;
  readonly overwriteDevice?: true | boolean;
  readonly progress?: ProgressForm;
  readonly control?: string;
  readonly json?: true | boolean;
}

export interface ClonePlan {
  /** Where and how the overlay is served, as `serve` would serve an image. */
  readonly serve: ServePlan;
  readonly source: SourcePlan;
  /** Of the image. */
  readonly format: ImageFormat;
  /** Background bytes a second; undefined: as fast as it goes. */
  readonly rateBytesPerSecond: number | undefined;
  /** Background bytes under way; undefined: it follows the path. */
  readonly windowBytes: number | undefined;
  /** Files; undefined: none. */
  readonly recordTrace: string | undefined;
  readonly replayTrace: string | undefined;
  readonly onSourceLoss: "stall" | "eio";
  readonly sourceLossDeadlineMs: number;
  readonly exitWhenHydrated: boolean;
  readonly progress: ProgressForm;
  /** Path of the control socket; undefined: the usual place. */
  readonly control: string | undefined;
  /** Of a new overlay; undefined: the usual one. */
  readonly clusterBytes: number | undefined;
  /** What is on a device may be written over. */
  readonly overwriteDevice: boolean;
}

const SOURCE_LOSS_DEADLINE_MS = 30_000;
const CLUSTER_BYTES_MIN = 512;
const CLUSTER_BYTES_MAX = 2 ** 21;

export interface CloneArguments {
  readonly source: string;
  readonly image: string;
}

export function planClone({ source, image }: CloneArguments, flags: CloneFlags, around: Surroundings): ClonePlan {
  const { format, insecure = false, onSourceLoss = "stall", sourceLossDeadline, clusterSize, rate } = flags;
  if (sourceLossDeadline !== undefined && onSourceLoss === "stall") {
    const why = "with --on-source-loss=stall, reads wait for as long as the source is away";
    throw usageError("cannot use --source-loss-deadline", why, "add --on-source-loss=eio, or leave it out");
  }
  checkClusterSize(clusterSize);
  return {
    serve: planServe(image, flags, around),
    format: chooseFormat(image, format).format,
    source: planSource(source, { directory: around.directory, insecure }),
    rateBytesPerSecond: rate ?? undefined,
    windowBytes: flags.window ?? undefined,
    recordTrace: flags.recordTrace === undefined ? undefined : resolve(around.directory, flags.recordTrace),
    replayTrace: flags.replayTrace === undefined ? undefined : resolve(around.directory, flags.replayTrace),
    onSourceLoss,
    sourceLossDeadlineMs: sourceLossDeadline ?? SOURCE_LOSS_DEADLINE_MS,
    exitWhenHydrated: flags.exitWhenHydrated ?? false,
    progress: flags.progress ?? { kind: "auto" },
    control: flags.control,
    clusterBytes: clusterSize,
    overwriteDevice: flags.overwriteDevice ?? false,
  };
}

function checkClusterSize(bytes: number | undefined): void {
  if (bytes === undefined) return;
  const powerOfTwo = Number.isInteger(Math.log2(bytes));
  if (powerOfTwo && bytes >= CLUSTER_BYTES_MIN && bytes <= CLUSTER_BYTES_MAX) return;
  throw usageError("cannot use --cluster-size", `${bytes} bytes is no power of two from 512 to 2M`, "4K is usual");
}
