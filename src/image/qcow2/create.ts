/** Makes a new qcow2 image: header, refcount table and blocks, and an empty L1 table, durable before the call returns. */
import type { Env } from "../../env/env.ts";
import { ImageOpenError } from "../errors.ts";
import type { BackingReference } from "../image.ts";
import { createImageFile, type NewImageContent } from "../tables/new-image-file.ts";
import { writeU64BE } from "../tables/u64-big.ts";
import { encodeExtension, QCOW2_EXT_BACKING_FORMAT, QCOW2_EXT_END, QCOW2_EXT_FEATURE_TABLE } from "./extensions.ts";
import {
  encodeHeader,
  QCOW2_BACKING_NAME_BYTES_MAX,
  QCOW2_CLUSTER_BITS_MAX,
  QCOW2_CLUSTER_BITS_MIN,
  QCOW2_HEADER_BYTES,
  QCOW2_HEADER_V2_BYTES,
  type Qcow2Header,
  sizeMax,
} from "./header.ts";

const CLUSTER_BYTES = 65_536;
const ENTRY_BYTES = 8;
const COUNT_BYTES = 2;
const SECTOR_BYTES = 512;
const FEATURE_NAME_BYTES = 46;
const FEATURE_TABLE_ROOM_BYTES = 4096;

/** Kind (0 incompatible, 1 compatible, 2 autoclear), bit and name: told to programs that know less than we do. */
const FEATURE_NAMES: readonly (readonly [kind: number, bit: number, name: string])[] = [
  [0, 0, "dirty bit"],
  [0, 1, "corrupt bit"],
  [0, 2, "external data file"],
  [0, 3, "compression type"],
  [0, 4, "extended L2 entries"],
  [1, 0, "lazy refcounts"],
  [2, 0, "bitmaps"],
  [2, 1, "raw external data"],
];

export interface CreateQcow2Options {
  /** There must be nothing at this path. */
  readonly path: string;
  /** A multiple of 512. */
  readonly sizeBytes: number;
  /** A power of two, 2^9 … 2^21. */
  readonly clusterBytes?: number;
  /** 3 unless said otherwise. */
  readonly version?: 2 | 3;
  /** Written down, not opened. */
  readonly backing?: BackingReference;
}

/** The file is closed again. After a failure there is no file. Throws `ImageOpenError`. */
export async function createQcow2(env: Pick<Env, "files">, options: CreateQcow2Options): Promise<void> {
  await createImageFile(env, options.path, newQcow2Content(options));
}

/** What such an image has in its file. Throws `ImageOpenError("bad-geometry")`. */
export function newQcow2Content(options: CreateQcow2Options): NewImageContent {
  const { clusterBytes = CLUSTER_BYTES } = options;
  const layout = planLayout(options);
  return {
    fileBytes: layout.fileBytes,
    parts: [
      { offset: clusterBytes, bytes: refcountTable(layout, clusterBytes) },
      { offset: clusterBytes * (1 + layout.tableClusters), bytes: refcountBlocks(layout) },
      { offset: 0, bytes: firstCluster(options, layout) },
    ],
  };
}

/** Header, refcount table, refcount blocks, L1 table, in this order; in clusters. */
interface Layout {
  readonly tableClusters: number;
  readonly blocks: number;
  readonly l1Entries: number;
  readonly clusters: number;
  readonly fileBytes: number;
}

/** Throws `ImageOpenError("bad-geometry")`. */
function planLayout({ path, sizeBytes, clusterBytes = CLUSTER_BYTES }: CreateQcow2Options): Layout {
  const refuse = (why: string, hint: string): never => {
    throw new ImageOpenError("bad-geometry", path, { doing: "create", why, hint });
  };
  const bits = Math.log2(clusterBytes);
  if (!(Number.isInteger(bits) && bits >= QCOW2_CLUSTER_BITS_MIN && bits <= QCOW2_CLUSTER_BITS_MAX)) {
    refuse(`clusters cannot have ${clusterBytes} bytes`, "choose a power of two from 512 to 2097152");
  }
  if (!(sizeBytes >= 0) || sizeBytes % SECTOR_BYTES !== 0) {
    refuse(`${sizeBytes} bytes are no whole number of sectors`, "choose a multiple of 512");
  }
  if (sizeBytes > sizeMax(bits))
    refuse(`such tables describe at most ${sizeMax(bits)} bytes`, "choose larger clusters");
  const l1Entries = Math.ceil(sizeBytes / ((clusterBytes / ENTRY_BYTES) * clusterBytes));
  const l1Clusters = Math.ceil((l1Entries * ENTRY_BYTES) / clusterBytes);
  const perBlock = clusterBytes / COUNT_BYTES;
  let [tableClusters, blocks] = [1, 1];
  for (let before = 0; before !== tableClusters + blocks; ) {
    before = tableClusters + blocks;
    blocks = Math.ceil((1 + tableClusters + blocks + l1Clusters) / perBlock);
    tableClusters = Math.ceil((blocks * ENTRY_BYTES) / clusterBytes);
  }
  const clusters = 1 + tableClusters + blocks + l1Clusters;
  const fileBytes = (clusters - l1Clusters) * clusterBytes + l1Entries * ENTRY_BYTES;
  return { tableClusters, blocks, l1Entries, clusters, fileBytes };
}

/** Header, extensions and name. Throws `ImageOpenError("bad-geometry")`. */
function firstCluster(options: CreateQcow2Options, layout: Layout): Buffer {
  const { path, sizeBytes, clusterBytes = CLUSTER_BYTES, version = 3, backing } = options;
  const refuse = (why: string): never => {
    const hint = "choose a shorter name, or larger clusters";
    throw new ImageOpenError("bad-geometry", path, { doing: "create", why, hint });
  };
  const name = Buffer.from(backing?.name ?? "", "utf8");
  if (name.length > QCOW2_BACKING_NAME_BYTES_MAX) refuse(`a name has at most ${QCOW2_BACKING_NAME_BYTES_MAX} bytes`);
  const headerBytes = version === 2 ? QCOW2_HEADER_V2_BYTES : QCOW2_HEADER_BYTES;
  const extensions: Buffer[] = [];
  if (backing?.format !== undefined) {
    if (backing.format.length > 15) refuse("a format's name has at most 15 bytes");
    extensions.push(encodeExtension(QCOW2_EXT_BACKING_FORMAT, Buffer.from(backing.format, "latin1")));
  }
  const end = encodeExtension(QCOW2_EXT_END, Buffer.alloc(0));
  const names = encodeExtension(QCOW2_EXT_FEATURE_TABLE, featureTable());
  // In small clusters QEMU leaves it out as well: it only helps to explain.
  const room = clusterBytes - headerBytes - sizeOf(extensions);
  if (version === 3 && room >= FEATURE_TABLE_ROOM_BYTES) extensions.push(names);
  extensions.push(end);
  const nameOffset = headerBytes + sizeOf(extensions);
  if (nameOffset + name.length > clusterBytes) refuse(`a name of ${name.length} bytes does not fit`);
  const header: Qcow2Header = {
    version,
    backingNameOffset: backing === undefined ? 0 : nameOffset,
    backingNameBytes: name.length,
    clusterBits: Math.log2(clusterBytes),
    sizeBytes,
    l1Entries: layout.l1Entries,
    l1Offset: layout.l1Entries === 0 ? 0 : clusterBytes * (1 + layout.tableClusters + layout.blocks),
    refcountTableOffset: clusterBytes,
    refcountTableClusters: layout.tableClusters,
    snapshots: 0,
    snapshotsOffset: 0,
    incompatibleFeatures: 0n,
    compatibleFeatures: 0n,
    autoclearFeatures: 0n,
    refcountOrder: 4,
    headerBytes,
    compression: "zlib",
  };
  return Buffer.concat([encodeHeader(header), ...extensions, name]);
}

function featureTable(): Buffer {
  return Buffer.concat(
    FEATURE_NAMES.map(([kind, bit, name]) => {
      const entry = Buffer.alloc(2 + FEATURE_NAME_BYTES);
      entry.set([kind, bit]);
      entry.write(name, 2, "latin1");
      return entry;
    }),
  );
}

function sizeOf(parts: readonly Buffer[]): number {
  return parts.reduce((sum, part) => sum + part.length, 0);
}

function refcountTable({ tableClusters, blocks }: Layout, clusterBytes: number): Buffer {
  const bytes = Buffer.alloc(blocks * ENTRY_BYTES);
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  for (let i = 0; i < blocks; i++) writeU64BE(view, i * ENTRY_BYTES, clusterBytes * (1 + tableClusters + i));
  return bytes;
}

/** All clusters are counted once, and none behind them: the blocks are written as far as that. */
function refcountBlocks({ clusters }: Layout): Buffer {
  const bytes = Buffer.alloc(clusters * COUNT_BYTES);
  for (let i = 0; i < clusters; i++) bytes.writeUInt16BE(1, i * COUNT_BYTES);
  return bytes;
}
