/** Where `serve` listens: the sockets that its plan names, made or taken over. */
import { existsSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { FileError } from "../../env/files.ts";
import type { ByteStream } from "../../env/links.ts";
import { type Listener, type ListenTarget, listenOn } from "../../os/listen.ts";
import type { Cleanup } from "../cleanup.ts";
import { checkExposure, type ListenPlan, type ServePlan } from "./plan.ts";

/** Listens wherever the plan says; every listener is closed by `cleanup`. `FileError` or `CliError` when it cannot be. */
export async function listenAsPlanned(
  plan: ServePlan,
  onStream: (stream: ByteStream) => void,
  cleanup: Cleanup,
): Promise<Listener[]> {
  const listeners: Listener[] = [];
  for (const target of targetsOf(plan.listen, cleanup)) {
    const listener = await listenOn(target, onStream);
    cleanup.defer(() => listener.close());
    // An inherited socket tells its address only now; nobody has been let in yet.
    if (listener.address.kind === "tcp") checkExposure(listener.address.host, plan.tls);
    listeners.push(listener);
  }
  return listeners;
}

function targetsOf(listen: ListenPlan, cleanup: Cleanup): ListenTarget[] {
  switch (listen.kind) {
    case "unix":
      checkFolder(listen.path);
      return [listen];
    case "tcp":
      return [listen];
    case "inherited":
      return listen.sockets.map(({ fd }) => ({ kind: "fd", fd }));
    case "private-unix": {
      const directory = mkdtempSync(join(tmpdir(), "blockferry-"));
      cleanup.defer(() => rmSync(directory, { recursive: true, force: true }));
      return [{ kind: "unix", path: join(directory, "socket") }];
    }
  }
}

/** The kernel says ENOENT, and libuv makes EACCES of it, which would send the user looking for permissions. */
function checkFolder(path: string): void {
  const folder = dirname(path);
  if (!existsSync(folder)) throw new FileError("ENOENT", `cannot listen on unix:${path}: there is no folder ${folder}`);
}
