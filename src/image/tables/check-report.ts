/** What checking an image's tables comes to, and how far a check has come that runs beside the guest. */

/** A table entry that points nowhere it may. */
export interface BadEntry {
  readonly field: string;
  /** Where in the file the entry is. */
  readonly at: number;
  readonly value: number;
}

/** Entries that are listed one by one; the rest is only counted. */
export const LISTED_ENTRIES_MAX = 100;

/** Counts as `qemu-img check` has them. */
export interface CheckReport {
  readonly totalClusters: number;
  readonly allocatedClusters: number;
  readonly fragmentedClusters: number;
  /** Clusters of the file that nothing refers to: space lost, no data. */
  readonly leaks: number;
  /** Wrong entries that are still there, and clusters that several entries refer to. */
  readonly corruptions: number;
  readonly corruptionsFixed: number;
  /** Tables that could not be read or repaired. */
  readonly checkErrors: number;
  readonly leaksFixed?: number;
  /** Of those that are allocated. */
  readonly compressedClusters?: number;
  /** Behind the last cluster in use, in bytes. */
  readonly imageEndOffset?: number;
  /** The first wrong entries. */
  readonly badEntries: readonly BadEntry[];
}

/** For a status display. */
export interface CheckProgress {
  /** `none`: the image was closed cleanly, or no table was looked at yet. */
  readonly state: "none" | "running" | "clean" | "failed";
  readonly clustersChecked: number;
  readonly clustersTotal: number;
  /** Allocating writes that wait. */
  readonly waiting: number;
  readonly longestWaitMs: number;
  /** Entries left by a crash that were taken out. */
  readonly entriesCleared: number;
  /** Once the check has ended. */
  readonly report?: CheckReport;
  /** What a failed check found. */
  readonly failure?: string;
}
