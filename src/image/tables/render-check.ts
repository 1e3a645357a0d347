/** What a check came to, in the form of `qemu-img check`. */
import type { CheckReport } from "./check-report.ts";

export function renderCheck(report: CheckReport): string {
  const { corruptions, leaks, checkErrors, totalClusters, allocatedClusters, fragmentedClusters } = report;
  const lines: string[] = [];
  if (corruptions === 0 && leaks === 0 && checkErrors === 0) lines.push("No errors were found on the image.");
  if (corruptions > 0) {
    lines.push("", `${corruptions} errors were found on the image.`);
    lines.push("Data may be corrupted, or further writes to the image may corrupt it.");
  }
  if (leaks > 0) {
    lines.push("", `${leaks} leaked clusters were found on the image.`);
    lines.push("This means waste of disk space, but no harm to data.");
  }
  if (checkErrors > 0) lines.push("", `${checkErrors} internal errors have occurred during the check.`);
  if (allocatedClusters > 0) {
    const allocated = percent(allocatedClusters, totalClusters);
    const fragmented = percent(fragmentedClusters, allocatedClusters);
    const share = `${allocatedClusters}/${totalClusters} = ${allocated} allocated`;
    const compressed = percent(report.compressedClusters ?? 0, allocatedClusters);
    lines.push(`${share}, ${fragmented} fragmented, ${compressed} compressed clusters`);
  }
  if (report.imageEndOffset !== undefined) lines.push(`Image end offset: ${report.imageEndOffset}`);
  return lines.map((line) => `${line}\n`).join("");
}

/** What a repair has put right, before what is left. */
export function renderRepairs({ leaksFixed = 0, corruptionsFixed }: CheckReport): string {
  const found = ["The following inconsistencies were found and repaired:", ""];
  const counts = [`    ${leaksFixed} leaked clusters`, `    ${corruptionsFixed} corruptions`, ""];
  return [...found, ...counts, "Double checking the fixed image now...", ""].join("\n");
}

/** A line for each wrong entry that is listed. */
export function renderBadEntries({ badEntries }: CheckReport): string {
  const hex = (value: number): string => `0x${value.toString(16)}`;
  return badEntries.map(({ field, at, value }) => `ERROR ${field} at ${hex(at)}: it says ${hex(value)}\n`).join("");
}

export interface CheckedImage {
  readonly path: string;
  readonly format: string;
  readonly report: CheckReport;
  readonly repaired: CheckReport | undefined;
}

/** The fields of `qemu-img check --output=json`; those that are 0 and say so by being absent are left out. */
export function checkFields({ path, format, report, repaired }: CheckedImage): object {
  const counts = {
    corruptions: report.corruptions,
    leaks: report.leaks,
    "corruptions-fixed": repaired?.corruptionsFixed ?? 0,
    "leaks-fixed": repaired?.leaksFixed ?? 0,
    "allocated-clusters": report.allocatedClusters,
    "fragmented-clusters": report.fragmentedClusters,
    "compressed-clusters": report.compressedClusters ?? 0,
  };
  return {
    ...(report.imageEndOffset !== undefined && { "image-end-offset": report.imageEndOffset }),
    "total-clusters": report.totalClusters,
    "check-errors": report.checkErrors,
    ...Object.fromEntries(Object.entries(counts).filter(([, count]) => count > 0)),
    filename: path,
    format,
  };
}

/** Two digits, rounded as C does it: what lies exactly between two goes to the even one. */
function percent(part: number, whole: number): string {
  const value = (100 * part) / whole;
  const hundredths = 100 * value;
  const below = Math.floor(hundredths);
  const isBetween = hundredths - below === 0.5;
  return `${(isBetween ? (below + (below % 2)) / 100 : value).toFixed(2)}%`;
}
