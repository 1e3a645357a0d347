/** The control socket of a running command: where it is, and its life from the first client to the last. */
import { join, resolve } from "node:path";
import { ControlServer } from "../../control/server.ts";
import type { ControlServerOptions } from "../../control/server-options.ts";
import { listenOn } from "../../os/listen.ts";
import { checkSocketPlace, makeRuntimeDirectory, SOCKET_SUFFIX } from "./runtime-directory.ts";

export interface OpenControlOptions extends ControlServerOptions {
  /** As `--control` says. Undefined: `ROLE[-NAME]-PID.ctl` in the runtime directory, where the verbs look for it. */
  readonly path?: string | undefined;
  /** For the default path: what is served ("vda"); may be empty. */
  readonly name?: string;
}

export interface OpenControl {
  /** Absolute. */
  readonly path: string;
  /** Answers what is under way, ends every connection and removes the socket. Idempotent. */
  close(): Promise<void>;
}

/** Listens. Throws `CliError` for a directory that is not safe, `FileError` ("EADDRINUSE", …) as `listenOn` does. */
export async function openControl(options: OpenControlOptions): Promise<OpenControl> {
  const uid = process.getuid?.() ?? 0;
  const path = options.path === undefined ? defaultPath(options, uid) : resolve(options.path);
  checkSocketPlace(path, uid);
  const server = new ControlServer(options);
  const listener = await listenOn({ kind: "unix", path }, (stream) => server.accept(stream));
  return {
    path,
    close: async () => {
      listener.close();
      await server.close();
    },
  };
}

function defaultPath({ identity, name = "" }: OpenControlOptions, uid: number): string {
  const safeName = name.replaceAll(/[^\w.-]/g, "_").slice(0, 40);
  const parts = [identity.role, safeName, String(identity.pid)].filter((part) => part !== "");
  return join(makeRuntimeDirectory(process.env, uid), `${parts.join("-")}${SOCKET_SUFFIX}`);
}
