/**
 * Carries a `ClonePlan` out: begins or goes on with the overlay, serves it and hydrates it, until told to stop or, if so
 * asked, until the image stands alone. Every step that succeeded is undone in reverse, also when a later one fails.
 */
import { EventHub } from "../../control/event-hub.ts";
import { Milestones } from "../../control/milestones.ts";
import { VerbRegistry } from "../../control/registry.ts";
import type { Env } from "../../env/env.ts";
import { loadNative } from "../../os/native.ts";
import { sdNotify } from "../../os/sd-notify.ts";
import type { SourceState } from "../../stream/source-session.ts";
import { Cleanup } from "../cleanup.ts";
import { CliError } from "../cli-error.ts";
import { onOutputClosed, onStatusSignal } from "../early-signals.ts";
import { EXIT_IO, EXIT_OK, EXIT_TRY_AGAIN, EXIT_UNAVAILABLE } from "../exit-codes.ts";
import { openControl } from "../instance/open-control.ts";
import { printable } from "../printable.ts";
import { ProgressDisplay } from "../progress/display.ts";
import { writePidFile } from "../serving/pid-file.ts";
import { exportsOf, loadCredentials, type ServeSurroundings, startServing } from "../serving/start.ts";
import { StopRequest } from "../serving/stop-request.ts";
import { formatUri } from "../serving/uri.ts";
import { VERSION } from "../version.ts";
import { publishEvents, registerCloneVerbs } from "./control.ts";
import { type CloneParts, startParts } from "./parts.ts";
import type { ClonePlan } from "./plan.ts";
import { type Begun, beginOverlay } from "./prepare.ts";
import { presenceContext } from "./presence.ts";
import { type ConnectSource, sourceConnector } from "./source.ts";
import { progressOf, statusLine } from "./status.ts";

/** Resolves to the exit code. */
export async function clone(plan: ClonePlan, around: ServeSurroundings): Promise<number> {
  const stop = new StopRequest();
  stop.onSignals();
  onOutputClosed(() => stop.make("the reader of our output has left"));
  if (plan.serve.exitWithParent) stop.onParentExit();
  await using cleanup = new Cleanup();
  const { env, log } = around;
  let removePidFile = (): void => {};
  cleanup.defer(() => removePidFile());

  const credentials = await loadCredentials(plan.serve.tls, around);
  const connect = await sourceConnector(env, plan.source, log);
  const begun = await beginUnlessStopped({ env, plan, connect, stop });
  if (begun === undefined) return stopStatus(plan);
  const { uri } = plan.source;
  const native = loadNative();
  if (native.state === "off") {
    log.warn("without native calls, holes are found by reading them: slow where a disk is large", {
      why: native.reason,
    });
  }
  log.info(begun.resumed ? "going on with a copy" : "beginning a copy", { source: uri, bytes: begun.sizeBytes });

  const startedMs = env.clock.nowMs();
  const events = new EventHub(env.clock);
  const milestones = new Milestones({ clock: env.clock, possible: ["listening", "hydrated", "complete"], events });
  const registry = new VerbRegistry();
  const uris: string[] = [];
  let clients = 0;
  // Closed last of all: whoever told us to quit learns by its end that the image is let go.
  let closeControl = async (): Promise<void> => undefined;
  cleanup.defer(() => closeControl());

  const parts = await startParts({ env, plan, begun, connect, cleanup });
  watch(parts, plan, around);
  publishEvents({ parts, events, milestones });
  registerCloneVerbs(registry, {
    ...{ clock: env.clock, plan, parts, stop, events, milestones, startedMs },
    clients: () => clients,
    uris: () => uris,
  });
  // Opened once there is a verb to answer.
  const identity = { program: "blockferry", programVersion: VERSION, pid: process.pid, role: "clone" };
  const { exportName: name } = plan.serve;
  const control = await openControl({ path: plan.control, name, registry, identity, clock: env.clock, log });
  closeControl = () => control.close();
  const { served } = await startServing(plan.serve, around, {
    exports: exportsOf(plan.serve, parts.guest, [presenceContext(parts.overlay)]),
    credentials,
    cleanup,
    onClientCount: (count) => {
      clients = count;
      events.publish("clients", { clients });
    },
  });
  uris.push(formatUri(served));
  onStatusSignal(() => around.showStatus(statusLine(plan.serve.image, parts.hydrator.progress())));
  if (plan.serve.pidFile !== undefined) removePidFile = writePidFile(plan.serve.pidFile);
  milestones.reach("listening");
  around.announce(served);
  sdNotify(around.notifySocket, ["READY=1", `STATUS=Hydrating ${printable(plan.serve.image)}`]);
  cleanup.defer(() => sdNotify(around.notifySocket, ["STOPPING=1"]));

  using progress = new ProgressDisplay({
    form: plan.progress,
    output: process.stderr,
    read: () => progressOf(parts.hydrator.progress()),
  });
  const why = await ended(parts, plan, stop);
  progress.stop();
  // What it has brought so far is made durable with the rest; anything more would only delay that.
  parts.hydrator.pause();
  events.publish("stopping", { why });
  log.info("stopping", { why });
  return parts.hydrator.state === "complete" ? EXIT_OK : stopStatus(plan);
}

/** Told to stop before the image stood alone. */
function stopStatus(plan: ClonePlan): number {
  return plan.exitWhenHydrated ? EXIT_TRY_AGAIN : EXIT_OK;
}

interface Beginning {
  readonly env: Env;
  readonly plan: ClonePlan;
  readonly connect: ConnectSource;
  readonly stop: StopRequest;
}

/** Undefined: told to stop while the source was asked, which may take long to answer. */
async function beginUnlessStopped({ env, plan, connect, stop }: Beginning): Promise<Begun | undefined> {
  const stopping = new AbortController();
  void stop.wished.then((why) => stopping.abort(new Error(why)));
  try {
    return await beginOverlay(env, plan, async () => {
      const session = await connect(stopping.signal);
      stopping.signal.addEventListener("abort", () => session.drop("told to stop"), { once: true });
      return session;
    });
  } catch (error) {
    if (stop.isMade) return undefined;
    throw error;
  }
}

/** Resolves to why it is over. Rejects when there is no point in waiting for what was asked. */
async function ended(parts: CloneParts, plan: ClonePlan, stop: StopRequest): Promise<string> {
  if (!plan.exitWhenHydrated) return await stop.wished;
  const mismatch = Promise.withResolvers<never>();
  const look = (): void => {
    if (parts.background.state === "mismatch") mismatch.reject(otherDisk(parts, plan));
  };
  const unsubscribe = parts.background.onState(look);
  look();
  try {
    return await Promise.race([stop.wished, mismatch.promise, hydrated(parts, plan)]);
  } finally {
    unsubscribe();
  }
}

async function hydrated({ hydrator }: CloneParts, plan: ClonePlan): Promise<string> {
  const outcome = await hydrator.whenDone();
  if (outcome.state !== "failed") return "the image stands alone";
  const why = outcome.error instanceof Error ? outcome.error.message : String(outcome.error);
  const what = `cannot finish ${plan.serve.image}`;
  const hint = "check the disk and the kernel log, then run the same command again: it goes on with what is durable";
  throw new CliError({ exitCode: EXIT_IO, code: "hydration-failed", what, why, hint }, { cause: outcome.error });
}

function otherDisk({ background }: CloneParts, plan: ClonePlan): CliError {
  return new CliError({
    exitCode: EXIT_UNAVAILABLE,
    code: "mismatch",
    what: `cannot go on with ${plan.serve.image}`,
    why: background.status().lastError ?? "another disk answers at the source",
    hint: "name the source that the copy was begun from, or choose a new image for this one",
  });
}

/** What an operator should see in the log, and systemd in its status line. */
function watch({ hydrator, demand }: CloneParts, plan: ClonePlan, { log, notifySocket }: ServeSurroundings): void {
  const image = plan.serve.image;
  const tellSource = (state: SourceState): void => {
    const { lastError } = demand.status();
    const fields = { source: plan.source.uri, ...(lastError !== undefined && { why: lastError }) };
    if (state === "disconnected") log.warn("the source is away; it reconnects by itself", fields);
    else if (state === "mismatch") log.error("another disk answers at the source; nothing is read from it", fields);
    else if (state === "connected") log.info("connected to the source", { source: plan.source.uri });
  };
  demand.onState(tellSource);
  // It may have been connected, or refused, before anybody could listen.
  tellSource(demand.state);
  hydrator.onState((state) => {
    const { error, failed, localBytes } = hydrator.progress();
    sdNotify(notifySocket, [`STATUS=${printable(statusLine(image, hydrator.progress()))}`]);
    if (state === "complete") log.info("the image stands alone", { image, bytes: localBytes });
    else if (state === "failed")
      log.error("hydration has failed", { image, ...(error !== undefined && { why: error }) });
    else if (state === "no-space") log.warn("the image's file system is full; hydration waits for room", { image });
    else if (state === "incomplete") log.warn("the source cannot read what is left", { bytes: failed.bytes });
  });
}
