/** What every subcommand that serves does alike: credentials, the NBD server, its sockets, and their orderly end. */
import type { BlockDevice } from "../../block/device.ts";
import { BlockError } from "../../block/error.ts";
import type { Env } from "../../env/env.ts";
import type { MetaContext, NbdExport } from "../../nbd/server/export.ts";
import { NbdServer } from "../../nbd/server/server.ts";
import type { Listener } from "../../os/listen.ts";
import { NodeTlsServer } from "../../os/tls.ts";
import { loadPskFile, loadServerCertificates, type TlsCredentials } from "../../os/tls-credentials.ts";
import type { Cleanup } from "../cleanup.ts";
import { CliError } from "../cli-error.ts";
import { EXIT_IO } from "../exit-codes.ts";
import type { Log } from "../log.ts";
import { listenAsPlanned } from "./listen.ts";
import type { ServePlan, TlsPlan } from "./plan.ts";
import type { ServedAs } from "./uri.ts";

/** How long clients' requests that are under way may take once we were told to stop. */
const DRAIN_MS = 5000;

export interface ServeSurroundings {
  readonly env: Env;
  readonly log: Log;
  /** Where systemd wants to be told how we are. */
  readonly notifySocket: string | undefined;
  /** Called once, when clients can connect. */
  announce(served: ServedAs): void;
  /** Shows the line that SIGUSR1 asks for. */
  showStatus(line: string): void;
}

export interface Serving {
  readonly server: NbdServer;
  readonly served: ServedAs;
}

export interface StartServing {
  readonly exports: readonly NbdExport[];
  readonly credentials: TlsCredentials | undefined;
  /** Drains the clients, flushes, and closes the sockets. */
  readonly cleanup: Cleanup;
  readonly onClientCount: (clients: number) => void;
}

/** Clients can connect when it resolves. */
export async function startServing(
  plan: ServePlan,
  { env, log }: ServeSurroundings,
  { exports, credentials, cleanup, onClientCount }: StartServing,
): Promise<Serving> {
  const server = new NbdServer({
    clock: env.clock,
    exports,
    ...(credentials && { tls: tlsOf(plan, credentials) }),
    limits: plan.connectionsMax === undefined ? {} : { connectionsMax: plan.connectionsMax },
    log,
    onClientCount,
  });
  cleanup.defer(() => closeServer(server));
  const listeners = await listenAsPlanned(plan, (stream) => server.accept(stream), cleanup);
  return { server, served: servedAs(plan, listeners, credentials) };
}

export async function loadCredentials(
  tls: TlsPlan,
  { env, log }: ServeSurroundings,
): Promise<TlsCredentials | undefined> {
  if (tls.mode === "off") return undefined;
  if (tls.credentials.kind === "psk") return await loadPskFile(tls.credentials.file);
  const { directory, verifyPeer } = tls.credentials;
  const loaded = await loadServerCertificates(directory, { verifyPeer, nowMs: env.clock.wallMs() });
  for (const warning of loaded.warnings) log.warn(warning);
  return loaded;
}

function tlsOf(plan: ServePlan, credentials: TlsCredentials): { mode: "on" | "require"; server: NodeTlsServer } {
  const { tls } = plan;
  if (tls.mode === "off") throw new Error("credentials were loaded, but TLS is off");
  const verifyPeer = tls.credentials.kind === "x509" && tls.credentials.verifyPeer;
  return { mode: tls.mode, server: new NodeTlsServer({ credentials, verifyPeer }) };
}

/** The device is both the default export and the one of its name. */
export function exportsOf(plan: ServePlan, device: BlockDevice, contexts: readonly MetaContext[] = []): NbdExport[] {
  const names = plan.exportName === "" ? [""] : [plan.exportName, ""];
  const { readOnly, description } = plan;
  return names.map((name) => ({
    ...{ name, device, readOnly, contexts },
    ...(description !== undefined && { description }),
  }));
}

function servedAs(plan: ServePlan, listeners: readonly Listener[], credentials: TlsCredentials | undefined): ServedAs {
  const [first] = listeners;
  if (first === undefined) throw new Error("nothing is listened on");
  const pskName = credentials?.kind === "psk" ? credentials.keys.names[0] : undefined;
  const { address } = first;
  return { address, exportName: plan.exportName, tls: plan.tls, ...(pskName !== undefined && { pskName }) };
}

async function closeServer(server: NbdServer): Promise<void> {
  try {
    await server.close({ graceMs: DRAIN_MS });
  } catch (error) {
    if (!(error instanceof BlockError)) throw error;
    throw new CliError(
      {
        exitCode: EXIT_IO,
        code: "flush",
        what: "could not make the image durable",
        why: error.message,
        hint: "what clients wrote since their last flush may be lost: check the disk and the kernel log",
      },
      { cause: error },
    );
  }
}
