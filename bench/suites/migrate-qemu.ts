/**
 * QEMU's own way of moving a disk that is not shared: its mirror job writes the disk to an NBD export of the other host,
 * and from READY on each of the guest's writes, too; then the guest stops, the job ends, and the guest goes on over there.
 * Two `qemu-storage-daemon`, which are QEMU's block layer without a machine.
 */
import { once } from "node:events";
import { truncate, writeFile } from "node:fs/promises";
import { type AddressInfo, createServer } from "node:net";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { NbdProbe } from "../lib/nbd-probe.ts";
import { ServerProcess } from "../lib/process.ts";
import { QmpClient } from "../lib/qmp.ts";
import type { Measurement } from "../lib/suite.ts";
import { DiskGuest } from "./migrate-guest.ts";
import { DISK, EVERY_MS, type MoveOptions, movedBytes, valuesOf } from "./migrate-modes.ts";
import { Rig } from "./migrate-rig.ts";

const LOOPBACK = "127.0.0.1";
/**
 * As `virsh migrate --copy-storage-synchronous-writes` has it. By default the mirror copies what was written later on, and is
 * READY at an instant when nothing is left: with a write every 10 ms and a round trip of as much, that may never be.
 */
const COPY_MODE = "write-blocking";
const WAIT_MS = 120_000;

/** The daemons run already when the clock starts, as the VMs' QEMUs would. */
export async function measureMirror({ sizeBytes, distance, pattern }: MoveOptions): Promise<Measurement> {
  await using rig = await Rig.create({ disks: [DISK], sizeBytes, distance, pattern });
  const [image, socketPath, port] = [rig.image("dest", DISK), join(rig.folder, "source", "nbd.sock"), await freePort()];
  await writeFile(image, "");
  await truncate(image, sizeBytes);
  await daemon(rig, "dest", ["--nbd-server", `addr.type=inet,addr.host=${LOOPBACK},addr.port=${port}`]);
  const qmp = await daemon(rig, "source", ["--nbd-server", `addr.type=unix,addr.path=${socketPath}`]);
  const line = await rig.line(`${LOOPBACK}:${port}`);
  if (line?.address.kind !== "tcp") throw new Error("no line");
  const guest = new DiskGuest(sizeBytes);
  const stop = new AbortController();
  const writing = guest.writeUntil(stop.signal, rig.use(await NbdProbe.connect(socketPath, DISK)), EVERY_MS);
  writing.catch(() => undefined);

  const startedMs = performance.now();
  const [ready, ended] = [qmp.event("BLOCK_JOB_READY"), qmp.event("BLOCK_JOB_COMPLETED")];
  // Whatever goes wrong before they are awaited has its own words.
  for (const event of [ready, ended]) event.catch(() => undefined);
  const server = { type: "inet", host: LOOPBACK, port: `${line.address.port}` };
  await qmp.execute("blockdev-add", { driver: "nbd", "node-name": "target", server, export: DISK });
  const job = { "job-id": "mirror", device: "disk", target: "target", sync: "full", "copy-mode": COPY_MODE };
  await qmp.execute("blockdev-mirror", job);
  await within("ready", ready);
  stop.abort();
  await writing;
  const stoppedMs = guest.acceptedMs;
  // Of a job that is ready this is how it ends in order, the target up to date.
  await qmp.execute("block-job-cancel", { device: "mirror" });
  const { data } = await within("over", ended);
  if (data["error"] !== undefined) throw new Error(`blockdev-mirror: ${String(data["error"])}`);
  await guest.write(rig.use(await NbdProbe.connect(port, DISK)));
  const switchedMs = guest.acceptedMs - startedMs;
  const moved = await movedBytes(line);
  await rig.verify(() => guest);
  const instants = { switchedMs, releasedMs: switchedMs };
  return { values: { ...valuesOf(instants, guest, guest.acceptedMs - stoppedMs), ...moved, totalMs: switchedMs } };
}

/** Serves its host's image, writable, on the NBD server of `words`. */
async function daemon(rig: Rig, side: "source" | "dest", words: readonly string[]): Promise<QmpClient> {
  const monitor = join(rig.folder, side, "qmp.sock");
  let client: QmpClient | undefined;
  rig.use(
    await ServerProcess.start({
      name: `qemu-storage-daemon (${side})`,
      argv: [
        "qemu-storage-daemon",
        ...["--chardev", `socket,id=qmp,path=${monitor},server=on,wait=off`, "--monitor", "chardev=qmp"],
        ...["--blockdev", `file,node-name=disk,filename=${rig.image(side, DISK)}`],
        ...words,
        ...["--export", `nbd,id=disk,node-name=disk,name=${DISK},writable=on`],
      ],
      ready: async () => {
        client = await QmpClient.connect(monitor);
      },
    }),
  );
  if (client === undefined) throw new Error("no monitor");
  return rig.use(client);
}

async function within<T>(what: string, wait: Promise<T>): Promise<T> {
  const late = delay(WAIT_MS, undefined, { ref: false }).then(() => {
    throw new Error(`the mirror is not ${what} after ${WAIT_MS / 1000} s`);
  });
  return await Promise.race([wait, late]);
}

async function freePort(): Promise<number> {
  const server = createServer().listen(0, LOOPBACK);
  await once(server, "listening");
  const { port } = server.address() as AddressInfo;
  server.close();
  await once(server, "close");
  return port;
}
