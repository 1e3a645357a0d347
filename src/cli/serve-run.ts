/**
 * Carries a `ServePlan` out: opens the image, listens, says where, serves until told to stop, then drains, flushes and
 * leaves nothing behind. Every step that succeeded is undone in reverse, also when a later one fails.
 */
import ms from "ms";
import type { BlockDevice } from "../block/device.ts";
import { BlockError } from "../block/error.ts";
import type { Env } from "../env/env.ts";
import type { Address } from "../env/links.ts";
import type { NbdExport } from "../nbd/server/export.ts";
import { NbdServer } from "../nbd/server/server.ts";
import type { Listener } from "../os/listen.ts";
import { sdNotify } from "../os/sd-notify.ts";
import { NodeTlsServer } from "../os/tls.ts";
import { loadPskFile, loadServerCertificates, type TlsCredentials } from "../os/tls-credentials.ts";
import { Cleanup } from "./cleanup.ts";
import { CliError } from "./cli-error.ts";
import { onOutputClosed, onStatusSignal } from "./early-signals.ts";
import { EXIT_IO, EXIT_OK } from "./exit-codes.ts";
import type { Log } from "./log.ts";
import { openForServing } from "./open-image.ts";
import { writePidFile } from "./pid-file.ts";
import { printable } from "./printable.ts";
import { runToEnd } from "./run-command.ts";
import { listenAsPlanned } from "./serve-listen.ts";
import type { ServePlan, TlsPlan } from "./serve-plan.ts";
import { formatUri, runScript, type ServedAs } from "./serve-uri.ts";
import { StopRequest } from "./stop-request.ts";

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

/** Resolves to the exit code. */
export async function serve(plan: ServePlan, around: ServeSurroundings): Promise<number> {
  const stop = new StopRequest();
  stop.onSignals();
  onOutputClosed(() => stop.make("the reader of our output has left"));
  if (plan.exitWithParent) stop.onParentExit();
  await using cleanup = new Cleanup();
  const { log } = around;
  // Deferred first, so that the file goes last: whoever waits for it to vanish may then touch the image.
  let removePidFile = (): void => {};
  cleanup.defer(() => removePidFile());

  const credentials = await loadCredentials(plan.tls, around);
  const image = await openForServing(around.env, plan, log);
  cleanup.defer(() => image.device.close());
  const server = new NbdServer({
    clock: around.env.clock,
    exports: exportsOf(plan, image.device),
    ...(credentials && { tls: tlsOf(plan, credentials) }),
    limits: plan.connectionsMax === undefined ? {} : { connectionsMax: plan.connectionsMax },
    log,
  });
  cleanup.defer(() => closeServer(server));
  const listeners = await listenAsPlanned(plan, (stream) => server.accept(stream), cleanup);

  const served = servedAs(plan, listeners, credentials);
  const startedMs = around.env.clock.nowMs();
  onStatusSignal(() =>
    around.showStatus(statusLine(plan, served, { server, upMs: around.env.clock.nowMs() - startedMs })),
  );
  if (plan.pidFile !== undefined) removePidFile = writePidFile(plan.pidFile);
  log.info("serving", {
    image: plan.image,
    format: image.format,
    bytes: image.device.sizeBytes,
    uri: formatUri(served),
  });
  around.announce(served);
  sdNotify(around.notifySocket, ["READY=1", `STATUS=Serving ${printable(plan.image)}`]);
  cleanup.defer(() => sdNotify(around.notifySocket, ["STOPPING=1"]));

  if (plan.run !== undefined) return await runToEnd(runScript(plan.run, served), stop);
  log.info("stopping", { why: await stop.wished });
  return EXIT_OK;
}

async function loadCredentials(tls: TlsPlan, { env, log }: ServeSurroundings): Promise<TlsCredentials | undefined> {
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

/** The image is both the default export and the one of its name. */
function exportsOf(plan: ServePlan, device: BlockDevice): NbdExport[] {
  const names = plan.exportName === "" ? [""] : [plan.exportName, ""];
  const { readOnly, description } = plan;
  return names.map((name) => ({ name, device, readOnly, ...(description !== undefined && { description }) }));
}

function servedAs(plan: ServePlan, listeners: readonly Listener[], credentials: TlsCredentials | undefined): ServedAs {
  const [first] = listeners;
  if (first === undefined) throw new Error("nothing is listened on");
  const pskName = credentials?.kind === "psk" ? credentials.keys.names[0] : undefined;
  const address: Address = first.address;
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

function statusLine(plan: ServePlan, served: ServedAs, now: { server: NbdServer; upMs: number }): string {
  const { clients } = now.server;
  return `serving ${plan.image} on ${formatUri(served)}: ${clients} ${clients === 1 ? "client" : "clients"}, up ${ms(Math.round(now.upMs))}`;
}
