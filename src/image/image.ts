/** What the formats have in common, beyond being block devices. */
import type { BlockDevice } from "../block/device.ts";
import type { Env } from "../env/env.ts";
import type { CheckProgress } from "./tables/check-report.ts";

/** What opening an image needs of the world; the rest makes it tidier. */
export type ImageEnv = Pick<Env, "files"> & Partial<Pick<Env, "clock" | "chaos">>;

export interface OpenImageOptions {
  readonly path: string;
  readonly readOnly: boolean;
  /** Refuse a symbolic link as the last component. */
  readonly noFollow?: boolean;
  /** False: take no image lock. For looking at an image that somebody else may be using, never for serving it. */
  readonly lock?: boolean;
  /**
   * What lies under an image that names a backing file; it stays the caller's. `absent`: the operator says that there is
   * nothing, so that what the image does not hold reads as zeroes. Names inside images are never opened.
   */
  readonly backing?: BlockDevice | "absent";
}

/** What the image says it lies over. Text, and never opened. */
export interface BackingReference {
  readonly name: string;
  readonly format?: string;
}

/** A range of an image as its own tables have it. */
export interface ImageRun {
  readonly length: number;
  /** The image itself says what is there. */
  readonly present: boolean;
  readonly zero: boolean;
  readonly data: boolean;
  /** Where in the file it is, if it is data. */
  readonly offset?: number;
}

/** What a format says of itself besides, in its own words, as `qemu-img info` has them and in its order. */
export interface FormatDetails {
  readonly type: string;
  /** By name in JSON, with "-" between words. */
  readonly data: Readonly<Record<string, string | number | boolean>>;
}

export interface Image extends BlockDevice {
  /** What the image lives in. */
  readonly storage: "regular" | "block-device";
  /** It was not closed cleanly, and its tables have to be checked. */
  readonly dirty: boolean;
  /** Of formats that have clusters. */
  readonly clusterBytes?: number;
  readonly backingReference?: BackingReference | undefined;
  readonly formatDetails?: FormatDetails | undefined;
  /** How the check of an image that was not closed cleanly is getting on. Absent where there are no tables. */
  readonly checkProgress?: CheckProgress;
  /** What the image's tables say, at least one run: absent where byte n of the device is byte n of the file. */
  runs?(offset: number, length: number): Promise<ImageRun[]>;
  /** Storage that the image takes, in bytes; 0 for a block device. */
  allocatedBytes(): Promise<number>;
}
