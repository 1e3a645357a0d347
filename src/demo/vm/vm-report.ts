/** The figures of a guest's move. */

import { readableBytes, readableTime, renderTable } from "../show.ts";
import type { Accelerator } from "./guest.ts";

/** Bytes and milliseconds. */
export interface VmDemoReport {
  readonly sizeBytes: number;
  /** What runs the guest: "kvm" or "tcg". */
  readonly accelerator: Accelerator;
  /** For as long the guest stood still: the last of its memory, and the disk's change of hands. */
  readonly switchoverPauseMs: number;
  /** Of these, for as long as writes were held. */
  readonly writesHeldMs: number | undefined;
  /** Between two counts of the guest's counter, as seen from outside; it counts every 100 ms. */
  readonly longestStallBeforeMs: number;
  readonly longestStallAfterMs: number;
  /** From the first contact until the destination has everything, durably. */
  readonly moveMs: number;
  readonly memoryBytes: number;
  readonly diskBytes: number;
  readonly bytesPerSecond: number;
  readonly savedBytes: number;
  readonly filesWritten: number;
  /** By the guest, after the source was killed. */
  readonly filesVerified: number;
}

export function renderVmReport(report: VmDemoReport): string {
  const { writesHeldMs, switchoverPauseMs, moveMs, diskBytes, memoryBytes, savedBytes, sizeBytes } = report;
  const held = writesHeldMs === undefined ? "" : ` (writes held ${readableTime(writesHeldMs)})`;
  const stall = `${readableTime(report.longestStallAfterMs)} with the switchover in it`;
  const amount = `${readableBytes(diskBytes)} of disk and ${readableBytes(memoryBytes)} of memory`;
  return renderTable([
    ["switchover pause", `${readableTime(switchoverPauseMs)}${held}`],
    [
      "longest stall of the counter",
      `${stall}, ${readableTime(report.longestStallBeforeMs)} before (it counts every 100 ms)`,
    ],
    ["brought over", `${amount} in ${readableTime(moveMs)}`],
    ["throughput", `${readableBytes(report.bytesPerSecond)}/s`],
    ["saved", `${readableBytes(savedBytes)} of ${readableBytes(sizeBytes)} were never sent: holes`],
    ["guest's work", `${report.filesWritten} files written and synced meanwhile`],
    ["verified", `${report.filesVerified} files by the guest's own checksums, and the file system by e2fsck`],
  ]);
}
