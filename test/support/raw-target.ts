/** A raw image over files in memory, as a conformance target that can lose power and fail syncs. */

import type { ConformanceTarget } from "../../src/block/conformance/rule.ts";
import type { BlockDevice } from "../../src/block/device.ts";
import type { FileFeatures } from "../../src/env/files.ts";
import { openRaw } from "../../src/image/raw.ts";
import { FakeFiles } from "./fake-files.ts";

const PATH = "/disk.raw";

/** Every device gets files of its own. `features` are those of the host. */
export function fakeRawTarget(
  features: Partial<FileFeatures> = {},
): Required<Pick<ConformanceTarget, "make" | "afterPowerLoss" | "failNextSync">> {
  const filesOf = new WeakMap<BlockDevice, FakeFiles>();
  const filesUnder = (device: BlockDevice): FakeFiles => {
    const files = filesOf.get(device);
    if (files === undefined) throw new Error("not a device of this target");
    return files;
  };
  const open = async (files: FakeFiles, readOnly: boolean): Promise<BlockDevice> => {
    const device = await openRaw({ files }, { path: PATH, readOnly });
    filesOf.set(device, files);
    return device;
  };
  return {
    make({ sizeBytes, content, readOnly = false }) {
      const files = new FakeFiles();
      files.features = { ...files.features, ...features };
      files.add(PATH, content ?? sizeBytes);
      return open(files, readOnly);
    },
    afterPowerLoss(device) {
      const files = filesUnder(device);
      files.disks.get(PATH)?.losePower();
      return open(files, false);
    },
    failNextSync(device) {
      filesUnder(device).inject({ operation: "dataSync", code: "EIO", times: 1 });
    },
  };
}
