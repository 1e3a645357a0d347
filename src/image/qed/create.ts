/** Makes a new QED image: header and an empty L1 table, durable before the call returns. */
import type { Env } from "../../env/env.ts";
import { ImageOpenError } from "../errors.ts";
import type { BackingReference } from "../image.ts";
import { createImageFile, type NewImageContent } from "../tables/new-image-file.ts";
import {
  encodeHeader,
  QED_BACKING_NAME_BYTES_MAX,
  QED_CLUSTER_BYTES_MAX,
  QED_CLUSTER_BYTES_MIN,
  QED_F_BACKING_FILE,
  QED_F_BACKING_FORMAT_NO_PROBE,
  QED_HEADER_BYTES,
  QED_TABLE_CLUSTERS_MAX,
  type QedHeader,
  sizeMax,
} from "./header.ts";

const CLUSTER_BYTES = 65_536;
const TABLE_CLUSTERS = 4;

export interface CreateQedOptions {
  /** There must be nothing at this path. */
  readonly path: string;
  /** A multiple of 512. */
  readonly sizeBytes: number;
  /** A power of two, 2^12 … 2^26. */
  readonly clusterBytes?: number;
  /** 2, 4, 8 or 16. One is allowed by the specification, and refused by QEMU when it opens such an image. */
  readonly tableClusters?: number;
  /** Written down, not opened. */
  readonly backing?: BackingReference;
}

/** The file is closed again. After a failure there is no file. Throws `ImageOpenError`. */
export async function createQed(env: Pick<Env, "files">, options: CreateQedOptions): Promise<void> {
  await createImageFile(env, options.path, newQedContent(options));
}

/** What such an image has in its file. Throws `ImageOpenError("bad-geometry")`. */
export function newQedContent(options: CreateQedOptions): NewImageContent {
  const { tableClusters = TABLE_CLUSTERS, clusterBytes = CLUSTER_BYTES } = options;
  return { fileBytes: clusterBytes * (1 + tableClusters), parts: [{ offset: 0, bytes: firstCluster(options) }] };
}

/** Header and name. Throws `ImageOpenError("bad-geometry")`. */
function firstCluster(options: CreateQedOptions): Buffer {
  const { path, sizeBytes, clusterBytes = CLUSTER_BYTES, tableClusters = TABLE_CLUSTERS, backing } = options;
  const refuse = (why: string, hint: string): never => {
    throw new ImageOpenError("bad-geometry", path, { doing: "create", why, hint });
  };
  if (!isPowerOfTwo(clusterBytes, QED_CLUSTER_BYTES_MIN, QED_CLUSTER_BYTES_MAX)) {
    refuse(`clusters cannot have ${clusterBytes} bytes`, "choose a power of two from 4096 to 67108864");
  }
  if (!isPowerOfTwo(tableClusters, 2, QED_TABLE_CLUSTERS_MAX)) {
    refuse(`tables cannot have ${tableClusters} clusters`, "choose 2, 4, 8 or 16 (QEMU does not open images with 1)");
  }
  if (sizeBytes < 0 || sizeBytes % 512 !== 0) {
    refuse(`${sizeBytes} bytes are no whole number of sectors`, "choose a multiple of 512");
  }
  const most = sizeMax(clusterBytes, tableClusters);
  if (sizeBytes > most) refuse(`such tables describe at most ${most} bytes`, "choose larger clusters or tables");
  const name = Buffer.from(backing?.name ?? "", "utf8");
  if (name.length > Math.min(clusterBytes - QED_HEADER_BYTES, QED_BACKING_NAME_BYTES_MAX)) {
    refuse(`a name of ${name.length} bytes does not fit`, "choose a shorter name, or larger clusters");
  }
  const noProbe = backing?.format === "raw" ? QED_F_BACKING_FORMAT_NO_PROBE : 0n;
  const header: QedHeader = {
    clusterBytes,
    tableClusters,
    headerClusters: 1,
    features: backing === undefined ? 0n : QED_F_BACKING_FILE | noProbe,
    compatFeatures: 0n,
    autoclearFeatures: 0n,
    l1Offset: clusterBytes,
    sizeBytes,
    backingNameOffset: backing === undefined ? 0 : QED_HEADER_BYTES,
    backingNameBytes: name.length,
  };
  return Buffer.concat([encodeHeader(header), name]);
}

function isPowerOfTwo(value: number, min: number, max: number): boolean {
  return value >= min && value <= max && Number.isInteger(Math.log2(value));
}
