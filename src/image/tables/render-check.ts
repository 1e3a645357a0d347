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

/** Two digits, rounded as C does it: what lies exactly between two goes to the even one. */
function percent(part: number, whole: number): string {
  const value = (100 * part) / whole;
  const hundredths = 100 * value;
  const below = Math.floor(hundredths);
  const isBetween = hundredths - below === 0.5;
  return `${(isBetween ? (below + (below % 2)) / 100 : value).toFixed(2)}%`;
}
