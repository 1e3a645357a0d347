import type { WantedDevice } from "../../../src/block/conformance/rule.ts";
import type { BlockDevice } from "../../../src/block/device.ts";
import { MemoryDevice } from "../../../src/block/memory.ts";
import { describeConformance } from "../../support/conformance.ts";
import { FakeFiles } from "../../support/fake-files.ts";
import { create, IMAGE, open, world } from "./support.ts";

const rigs = new WeakMap<BlockDevice, { files: FakeFiles; backing: BlockDevice }>();

async function attach(files: FakeFiles, backing: BlockDevice, bootId: string): Promise<BlockDevice> {
  const device = await open(world(files), { backing, bootId });
  rigs.set(device, { files, backing });
  return device;
}

function rigOf(device: BlockDevice): { files: FakeFiles; backing: BlockDevice } {
  const rig = rigs.get(device);
  if (rig === undefined) throw new Error("not a device of this target");
  return rig;
}

const target = {
  async make({ sizeBytes, content }: WantedDevice) {
    const files = new FakeFiles();
    const backing = new MemoryDevice({ sizeBytes, ...(content === undefined ? {} : { content }) });
    await create(world(files), sizeBytes);
    return attach(files, backing, "boot 1");
  },
  alwaysWritable: true,
  // The map alone of a larger disk makes the files in memory slow.
  sizeMaxBytes: 2 ** 40,
};

describeConformance("an overlay of which nothing is local", {
  ...target,
  afterPowerLoss(device: BlockDevice) {
    const { files, backing } = rigOf(device);
    for (const disk of files.disks.values()) disk.losePower();
    return attach(files, backing, "boot 2");
  },
  failNextSync(device: BlockDevice) {
    rigOf(device).files.inject({ operation: "dataSync", code: "EIO", times: 1 });
  },
});

describeConformance("an overlay that is all local", {
  ...target,
  async make(wanted: WantedDevice) {
    const files = new FakeFiles();
    const { sizeBytes, content } = wanted;
    const backing = new MemoryDevice({ sizeBytes, ...(content === undefined ? {} : { content }) });
    await create(world(files), sizeBytes);
    const overlay = await open(world(files), { backing });
    await overlay.fetchBackground({ first: 0, count: overlay.clusters });
    await overlay.complete();
    rigs.set(overlay, { files, backing });
    if (!files.disks.has(IMAGE)) throw new Error("the image is gone");
    return overlay;
  },
  sizeMaxBytes: 2 ** 30,
});
