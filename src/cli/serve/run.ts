/**
 * Carries a `ServePlan` out: opens the image, listens, says where, serves until told to stop, then drains, flushes and
 * leaves nothing behind. Every step that succeeded is undone in reverse, also when a later one fails.
 */
import ms from "ms";
import type { NbdServer } from "../../nbd/server/server.ts";
import { sdNotify } from "../../os/sd-notify.ts";
import { Cleanup } from "../cleanup.ts";
import { onOutputClosed, onStatusSignal } from "../early-signals.ts";
import { EXIT_OK } from "../exit-codes.ts";
import { printable } from "../printable.ts";
import { writePidFile } from "../serving/pid-file.ts";
import type { ServePlan } from "../serving/plan.ts";
import { runToEnd } from "../serving/run-command.ts";
import { exportsOf, loadCredentials, type ServeSurroundings, startServing } from "../serving/start.ts";
import { StopRequest } from "../serving/stop-request.ts";
import { formatUri, runScript, type ServedAs } from "../serving/uri.ts";
import type { ServeControl } from "./control.ts";
import { openForServing } from "./open-image.ts";

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
  // Before the image, so that it ends after it: whoever told us to quit learns that the image is let go.
  const control = await controlAsPlanned(plan, around, stop);
  cleanup.defer(() => control?.close());
  const image = await openForServing(around.env, plan, log);
  cleanup.defer(() => image.close());
  const { server, served } = await startServing(plan, around, {
    exports: exportsOf(plan, image.device),
    credentials,
    cleanup,
    onClientCount: (clients) => control?.clientsChanged(clients),
  });
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
  control?.listening({ format: image.format, image: image.device, uri: formatUri(served) });
  around.announce(served);
  sdNotify(around.notifySocket, ["READY=1", `STATUS=Serving ${printable(plan.image)}`]);
  cleanup.defer(() => sdNotify(around.notifySocket, ["STOPPING=1"]));

  if (plan.run !== undefined) return await runToEnd(runScript(plan.run, served), stop);
  const why = await stop.wished;
  control?.stopping(why);
  log.info("stopping", { why });
  return EXIT_OK;
}

/** Most servers have no control socket, and need not load what it takes. */
async function controlAsPlanned(
  plan: ServePlan,
  { env, log }: ServeSurroundings,
  stop: StopRequest,
): Promise<ServeControl | undefined> {
  if (plan.control === undefined) return undefined;
  const { ServeControl } = await import("./control.ts");
  return await ServeControl.open({ plan, path: plan.control, clock: env.clock, log, stop });
}

function statusLine(plan: ServePlan, served: ServedAs, now: { server: NbdServer; upMs: number }): string {
  const { clients } = now.server;
  return `serving ${plan.image} on ${formatUri(served)}: ${clients} ${clients === 1 ? "client" : "clients"}, up ${ms(Math.round(now.upMs))}`;
}
