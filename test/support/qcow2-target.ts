/** qcow2 images over files in memory, as a conformance target that can lose power and fail syncs. */
import type { ConformanceTarget } from "../../src/block/conformance/rule.ts";
import type { BlockDevice } from "../../src/block/device.ts";
import { MemoryDevice } from "../../src/block/memory.ts";
import type { FileFeatures } from "../../src/env/files.ts";
import { createQcow2 } from "../../src/image/qcow2/create.ts";
import { openQcow2 } from "../../src/image/qcow2/open.ts";
import { FakeFiles } from "./fake-files.ts";

export const QCOW2_PATH = "/disk.qcow2";
const SECTOR_BYTES = 512;
const L1_ENTRIES_MAX = 2 ** 22;

export interface Qcow2TargetOptions {
  readonly features?: Partial<FileFeatures>;
  readonly clusterBytes?: number;
  readonly version?: 2 | 3;
  /** The content is in a backing device, and the image empty at first. */
  readonly overBacking?: boolean;
}

/** Every device gets files of its own. */
export function fakeQcow2Target(options: Qcow2TargetOptions = {}): ConformanceTarget {
  const { features = {}, clusterBytes = 65_536, version = 3, overBacking = false } = options;
  const partsOf = new WeakMap<BlockDevice, { files: FakeFiles; backing: BlockDevice | undefined }>();
  const partsUnder = (device: BlockDevice): { files: FakeFiles; backing: BlockDevice | undefined } => {
    const parts = partsOf.get(device);
    if (parts === undefined) throw new Error("not a device of this target");
    return parts;
  };
  const open = async (files: FakeFiles, backing: BlockDevice | undefined, readOnly: boolean): Promise<BlockDevice> => {
    const device = await openQcow2({ files }, { path: QCOW2_PATH, readOnly, ...(backing && { backing }) });
    partsOf.set(device, { files, backing });
    return device;
  };
  return {
    sizeMultiple: SECTOR_BYTES,
    sizeMaxBytes: Math.min((clusterBytes / 8) * clusterBytes * L1_ENTRIES_MAX, Number.MAX_SAFE_INTEGER),
    async make({ sizeBytes, content, readOnly = false }) {
      const files = new FakeFiles();
      files.features = { ...files.features, ...features };
      const backing = overBacking ? new MemoryDevice({ sizeBytes, ...(content && { content }) }) : undefined;
      const named = overBacking ? { backing: { name: "/never/opened", format: "raw" } } : {};
      await createQcow2({ files }, { path: QCOW2_PATH, sizeBytes, clusterBytes, version, ...named });
      if (content !== undefined && !overBacking) {
        await using filling = await open(files, undefined, false);
        await filling.write(0, content);
        await filling.flush();
      }
      return open(files, backing, readOnly);
    },
    afterPowerLoss(device) {
      const { files, backing } = partsUnder(device);
      files.disks.get(QCOW2_PATH)?.losePower();
      return open(files, backing, false);
    },
    failNextSync(device) {
      partsUnder(device).files.inject({ operation: "dataSync", code: "EIO", times: 1 });
    },
  };
}
