/**
 * Who serves a disk locally that is still at the source: what is read is fetched, and kept. Each on a unix socket, over a
 * source that is reached by TCP.
 */
import { join } from "node:path";
import { NbdProbe } from "../lib/nbd-probe.ts";
import { BUILT, LAUNCHER } from "../lib/peers.ts";
import { runTool, ServerProcess } from "../lib/process.ts";
import { SUBJECT } from "../lib/suite.ts";
import type { Scene } from "./wan-scene.ts";

const TIMEOUT_MS = 10_000;

export interface LazyServer {
  readonly name: string;
  /** Programs that it needs. */
  readonly needs: readonly string[];
  /** Resolves when `socketPath` can be connected to. */
  start(scene: Scene, socketPath: string): Promise<ServerProcess>;
}

/** `flags` for `clone`; without any it also brings the rest, as fast as the line lets it. */
export const lazyClone = (name: string = SUBJECT, flags: readonly string[] = []): LazyServer => ({
  name,
  needs: [SUBJECT],
  start: ({ uri, folder }, socketPath) => {
    const listen = ["-U", socketPath, "-C", join(folder, "control.sock")];
    const argv = [LAUNCHER, "clone", ...flags, ...listen, uri, join(folder, "overlay.raw")] as const;
    const environment = { ...BUILT, XDG_RUNTIME_DIR: folder };
    return ServerProcess.start({ name, argv: [...argv], environment, ready: () => shakeHands(socketPath) });
  },
});

/** QEMU's own: a new qcow2 overlay over the source, and a filter that stores in it what is read. */
export const LAZY_QEMU: LazyServer = {
  name: "qemu-copy-on-read",
  needs: ["qemu-storage-daemon", "qemu-img"],
  start: async ({ port, folder, disk }, socketPath) => {
    const path = join(folder, "overlay.qcow2");
    const create = ["qemu-img", "create", "-q", "-f", "qcow2", path, `${disk.sizeBytes}`] as const;
    await runTool({ argv: create, timeoutMs: TIMEOUT_MS });
    const source = `nbd,node-name=source,server.type=inet,server.host=127.0.0.1,server.port=${port},read-only=on`;
    return await ServerProcess.start({
      name: "qemu-storage-daemon",
      argv: [
        "qemu-storage-daemon",
        ...["--blockdev", source],
        ...["--blockdev", `file,node-name=file,filename=${path}`],
        ...["--blockdev", "qcow2,node-name=overlay,file=file,backing=source"],
        ...["--blockdev", "copy-on-read,node-name=top,file=overlay"],
        ...["--nbd-server", `addr.type=unix,addr.path=${socketPath}`],
        ...["--export", "nbd,id=export,node-name=top,name=,writable=on"],
      ],
      ready: () => shakeHands(socketPath),
    });
  },
};

export const LAZY_NBDKIT: LazyServer = {
  name: "nbdkit-cow",
  needs: ["nbdkit"],
  start: ({ port, folder }, socketPath) =>
    ServerProcess.start({
      name: "nbdkit cow",
      argv: [
        "nbdkit",
        ...["--foreground", "--unix", socketPath, "--filter=cow", "nbd"],
        ...["hostname=127.0.0.1", `port=${port}`, "cow-on-read=true"],
      ],
      // The filter keeps its overlay there.
      environment: { TMPDIR: folder },
      ready: () => shakeHands(socketPath),
    }),
};

async function shakeHands(socketPath: string): Promise<void> {
  await (await NbdProbe.connect(socketPath))[Symbol.asyncDispose]();
}
