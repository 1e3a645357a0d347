/** What the formats have in common, beyond being block devices. */
import type { BlockDevice } from "../block/device.ts";

export interface OpenImageOptions {
  readonly path: string;
  readonly readOnly: boolean;
  /** Refuse a symbolic link as the last component. */
  readonly noFollow?: boolean;
  /** False: take no image lock. For looking at an image that somebody else may be using, never for serving it. */
  readonly lock?: boolean;
}

export interface Image extends BlockDevice {
  /** What the image lives in. */
  readonly storage: "regular" | "block-device";
  /** It was not closed cleanly, and its tables have to be checked. */
  readonly dirty: boolean;
  /** Storage that the image takes, in bytes; 0 for a block device. */
  allocatedBytes(): Promise<number>;
}
