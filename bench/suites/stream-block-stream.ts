/**
 * QEMU's block-stream: what a VM's own QEMU does when its disk is to be brought over while it runs. A new overlay
 * over the source's NBD export, in qemu-storage-daemon, which is QEMU's block layer without a machine.
 */
import { join } from "node:path";
import { runTool, ServerProcess } from "../lib/process.ts";
import { QmpClient } from "../lib/qmp.ts";
import type { Copied, Copier, CopyJob } from "./stream-copiers.ts";

export const copyBlockStream = (format: "qcow2" | "qed"): Copier => ({
  name: "block-stream",
  copy: (job) => blockStream(job, format),
});

export const COPY_BLOCK_STREAM = copyBlockStream("qcow2");

/** The daemon runs already when the clock starts, as the VM's QEMU would; it ends within the time that counts. */
async function blockStream({ folder, port, sizeBytes, timeoutMs }: CopyJob, format: "qcow2" | "qed"): Promise<Copied> {
  const path = join(folder, `overlay.${format}`);
  const monitor = join(folder, "qmp.sock");
  await runTool({ argv: ["qemu-img", "create", "-q", "-f", format, path, `${sizeBytes}`], timeoutMs });
  let client: QmpClient | undefined;
  const daemon = await ServerProcess.start({
    name: "qemu-storage-daemon",
    argv: [
      "qemu-storage-daemon",
      ...["--chardev", `socket,id=qmp,path=${monitor},server=on,wait=off`, "--monitor", "chardev=qmp"],
      ...["--blockdev", `nbd,node-name=source,server.type=inet,server.host=127.0.0.1,server.port=${port},read-only=on`],
      ...["--blockdev", `file,node-name=file,filename=${path}`],
      ...["--blockdev", `${format},node-name=overlay,file=file,backing=source`],
    ],
    ready: async () => {
      client = await QmpClient.connect(monitor);
    },
  });
  await using _daemon = daemon;
  if (client === undefined) throw new Error("no monitor");
  await using qmp: QmpClient = client;

  const startedMs = performance.now();
  const before = daemon.usage();
  const timedOut = AbortSignal.timeout(timeoutMs);
  const done = qmp.event("BLOCK_JOB_COMPLETED");
  await qmp.execute("block-stream", { "job-id": "stream", device: "overlay" });
  const { data } = await Promise.race([done, rejection(timedOut)]);
  if (data["error"] !== undefined) throw new Error(`block-stream: ${String(data["error"])}`);
  if (data["len"] !== data["offset"]) throw new Error(`block-stream stopped at ${String(data["offset"])}`);
  const after = daemon.usage();
  await daemon.stop();
  const wallMs = performance.now() - startedMs;
  const cpuSeconds = after.cpuSeconds - before.cpuSeconds;
  return { path, format, wallMs, cpuSeconds, peakRssBytes: after.peakRssBytes };
}

function rejection(signal: AbortSignal): Promise<never> {
  return new Promise((_, reject) =>
    signal.addEventListener("abort", () => reject(new Error("block-stream took too long"))),
  );
}
