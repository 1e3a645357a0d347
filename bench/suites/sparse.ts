/**
 * What a disk costs that is much larger than its data: the same data in a disk of their own size, in one a hundred times as
 * large, and in the largest file that there is room for.
 */
import { join } from "node:path";
import { Pattern } from "../lib/pattern.ts";
import { NBDKIT } from "../lib/peers.ts";
import { createPatternFile, createSparseFile, type Range } from "../lib/prepare.ts";
import {
  type BenchCase,
  type Contender,
  type Metric,
  type OpenSuite,
  SUBJECT,
  type Suite,
  type SuiteContext,
} from "../lib/suite.ts";
import { COPY_BLOCKFERRY, COPY_NBDCOPY, COPY_QEMU_IMG, type Copier } from "./stream-copiers.ts";
import { measureCopy, type SourceDisk } from "./stream-copy.ts";
import { findTools, type Tools } from "./tools.ts";

const MIB = 2 ** 20;
const GIB = 2 ** 30;
const TIB = 2 ** 40;
const PATTERN = new Pattern("blockferry bench sparse source");
const PIECE_BYTES = 4 * MIB;
/** ext4 holds no file of 16 TiB, only a block less. */
const LARGEST_BYTES = 16 * TIB - MIB;
const DENSE = "without-holes";

const SECONDS: Metric = { name: "seconds", better: "lower", heading: "s" };
const METRICS: readonly [Metric, ...Metric[]] = [
  SECONDS,
  { name: "finalSyncMs", better: "lower", heading: "last sync ms" },
  { name: "sourceCpuSeconds", better: "lower", heading: "source CPU s" },
  { name: "destinationCpuSeconds", better: "lower", heading: "destination CPU s" },
  { name: "peakRssBytes", better: "lower", heading: "RSS MiB", divisor: MIB },
];

export const sparseSuite: Suite = {
  name: "sparse",
  what: "the same data in disks of 1 GiB, 100 GiB and 16 TiB, over TCP into a local file",
  open,
};

async function open(context: SuiteContext): Promise<OpenSuite> {
  const tools = await findTools();
  const dense = denseDisk(context);
  const sparse = [
    ["in-100g", sparseDisk(context, 100 * GIB)],
    ["in-16t", sparseDisk(context, LARGEST_BYTES)],
  ] as const;
  const wanted = sparse.filter(([name]) => context.wants(name));
  if (wanted.length > 0) await createPatternFile(dense.path, dense.sizeBytes, PATTERN);
  for (const [, disk] of wanted) await createSparseFile(disk.path, disk.sizeBytes, disk.data, PATTERN);
  return {
    cases: sparse.map(([name, disk]) => sparseCase(name, { disk, dense }, tools)),
    versions: tools.versions,
    // All files are in the run's folder, which goes with the run.
    [Symbol.asyncDispose]: async () => {},
  };
}

function sparseCase(
  name: string,
  { disk, dense }: { readonly disk: SourceDisk; readonly dense: SourceDisk },
  { missing }: Tools,
): BenchCase {
  const contender = (copier: Copier, from: SourceDisk, ...needed: readonly string[]): Contender => ({
    name: copier.name,
    ...missing("nbdkit", "qemu-img", ...needed),
    measure: () => measureCopy(copier, NBDKIT, from),
  });
  return {
    name,
    what: `${disk.dataBytes / MIB} MiB of data in ${disk.data.length} places of ${Math.round(disk.sizeBytes / GIB)} GiB, from nbdkit`,
    metrics: METRICS,
    bars: [{ kind: "ratio", metric: SECONDS.name, bound: "atMost", limit: 1.1, against: DENSE }],
    contenders: [
      contender(COPY_BLOCKFERRY, disk, SUBJECT),
      contender({ ...COPY_BLOCKFERRY, name: DENSE }, dense, SUBJECT),
      contender(COPY_NBDCOPY, disk, "nbdcopy"),
      contender(COPY_QEMU_IMG, disk),
    ],
  };
}

function denseDisk({ directory, quick, sizeBytes = (quick ? 256 : 1024) * MIB }: SuiteContext): SourceDisk {
  const data = [{ offset: 0, length: sizeBytes }];
  return { directory, path: join(directory, "dense-source.raw"), sizeBytes, data, dataBytes: sizeBytes };
}

/** As much data as the dense disk has, in pieces at uneven distances, the disk's first and last among them. */
function sparseDisk(context: SuiteContext, sizeBytes: number): SourceDisk {
  const { directory, dataBytes } = denseDisk(context);
  const pieces = dataBytes / PIECE_BYTES;
  const last = sizeBytes - PIECE_BYTES;
  const data: Range[] = Array.from({ length: pieces }, (_, index) => {
    const place = (index / (pieces - 1)) ** 1.5 * last;
    return { offset: Math.floor(place / PIECE_BYTES) * PIECE_BYTES, length: PIECE_BYTES };
  });
  return { directory, path: join(directory, `sparse-source-${sizeBytes / GIB}.raw`), sizeBytes, data, dataBytes };
}
