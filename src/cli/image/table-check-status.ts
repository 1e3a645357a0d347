/** The check of an image's tables, and the barrier before it, as `status` tells them. */
import type { DiskStatus } from "../../control/status.ts";
import type { Image } from "../../image/image.ts";

/** Nothing for an image that was closed cleanly. */
export function tableCheckStatus({
  dirty,
  checkProgress: progress,
}: Pick<Image, "dirty" | "checkProgress">): Pick<DiskStatus, "tableCheck"> {
  if (progress === undefined || (!dirty && progress.state === "none")) return {};
  const { state, clustersChecked, clustersTotal, waiting, longestWaitMs, entriesCleared, failure } = progress;
  return {
    tableCheck: {
      state: state === "none" ? "pending" : state,
      ...{ clustersChecked, clustersTotal, waiting, entriesCleared },
      longestWaitSeconds: longestWaitMs / 1000,
      failure: failure?.slice(0, 1000) ?? null,
    },
  };
}
