/** Our client keeps the contract of a block device in front of other people's servers. */
import { writeFileSync } from "node:fs";
import type { ConformanceTarget, WantedDevice } from "../../../../src/block/conformance/rule.ts";
import type { OpenOptions } from "../../../../src/nbd/client/connect.ts";
import { describeConformance } from "../../../support/conformance.ts";
import { nbdkit, type Peer, qemuNbd } from "../../../support/peers.ts";
import { tempDir } from "../../../support/temp-dir.ts";

const TIMEOUT_MS = 60_000;

interface TargetParts extends Partial<ConformanceTarget> {
  readonly serve: (wanted: WantedDevice) => Promise<Peer>;
  readonly open?: Partial<OpenOptions>;
}

/** Each device has a server of its own, which ends with it. */
function target({ serve, open, ...more }: TargetParts): ConformanceTarget {
  return {
    ...more,
    async make(wanted) {
      const peer = await serve(wanted);
      const device = await peer.open(open);
      const close = device.close.bind(device);
      let closing: Promise<void> | undefined;
      device.close = () => {
        closing ??= close().finally(() => peer[Symbol.asyncDispose]());
        return closing;
      };
      if (wanted.content !== undefined && wanted.readOnly !== true) await device.write(0, wanted.content);
      return device;
    },
  };
}

/** nbdkit's memory disk; a file, where the contents must be there before the first client. */
async function nbdkitDisk(wanted: WantedDevice, ...flags: string[]): Promise<Peer> {
  const { sizeBytes, content, readOnly } = wanted;
  if (readOnly !== true) return await nbdkit(...flags, "memory", `size=${sizeBytes}`);
  using folder = tempDir();
  writeFileSync(folder.file("disk"), content ?? new Uint8Array(sizeBytes));
  // The folder may go: nbdkit has read the file when it is ready.
  return await nbdkit("-r", ...flags, "data", `data=<${folder.file("disk")}`, `size=${sizeBytes}`);
}

const NBDKIT = { tools: ["nbdkit"], timeoutMs: TIMEOUT_MS };

describeConformance("our client of nbdkit", target({ serve: (wanted) => nbdkitDisk(wanted) }), NBDKIT);

describeConformance(
  "our client of nbdkit with simple replies",
  target({ serve: (wanted) => nbdkitDisk(wanted), open: { dialectMax: "simple" } }),
  NBDKIT,
);

describeConformance(
  "our client of a strict nbdkit with blocks of 4096 bytes, and requests of 64 KiB at most",
  target({
    serve: async (wanted) => {
      const sizes = ["blocksize-minimum=4096", "blocksize-preferred=4096", "blocksize-maximum=65536"];
      const { sizeBytes } = wanted;
      const flags = ["blocksize-error-policy=error", ...sizes];
      return await nbdkit("--filter=blocksize-policy", "memory", `size=${sizeBytes}`, ...flags);
    },
    sizeMultiple: 4096,
    alwaysWritable: true,
  }),
  NBDKIT,
);

describeConformance(
  "our client of qemu-nbd",
  target({
    serve: ({ sizeBytes, content, readOnly }) =>
      qemuNbd(
        (image) => writeFileSync(image, content ?? new Uint8Array(sizeBytes)),
        ...(readOnly === true ? ["-r"] : ["--discard=unmap"]),
      ),
    sizeMultiple: 512,
    sizeMaxBytes: 2 ** 30,
  }),
  { tools: ["qemu-nbd"], timeoutMs: TIMEOUT_MS },
);
