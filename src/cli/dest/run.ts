/**
 * Carries a `DestPlan` out: meets the source, serves the disks to the guest, takes them over when they are granted, fetches
 * the rest, until told to stop. Every step that succeeded is undone in reverse, also when a later one fails.
 */
import { EventHub } from "../../control/event-hub.ts";
import { Milestones } from "../../control/milestones.ts";
import { VerbRegistry } from "../../control/registry.ts";
import type { Env } from "../../env/env.ts";
import { formatAddress } from "../../env/links.ts";
import { DestinationMigration } from "../../migrate/destination.ts";
import type { DestinationDisk, DestinationExport } from "../../migrate/destination-options.ts";
import { readBootId } from "../../os/boot-id.ts";
import { sdNotify } from "../../os/sd-notify.ts";
import { Cleanup } from "../cleanup.ts";
import { CliError } from "../cli-error.ts";
import { onOutputClosed, onStatusSignal } from "../early-signals.ts";
import { EXIT_NO, EXIT_OK, EXIT_UNAVAILABLE } from "../exit-codes.ts";
import { takeDevice } from "../image/device-records.ts";
import { findPlace, refuseToWriteOver } from "../image/overlay-place.ts";
import { openControl } from "../instance/open-control.ts";
import { guestExports, makeSocketPlace, readyLines } from "../migration/guest-side.ts";
import { takeStateDirectory } from "../migration/state-directory.ts";
import { printable } from "../printable.ts";
import { ProgressDisplay } from "../progress/display.ts";
import type { Progress } from "../progress/format.ts";
import { writePidFile } from "../serving/pid-file.ts";
import { type ServeSurroundings, startServing } from "../serving/start.ts";
import { StopRequest } from "../serving/stop-request.ts";
import { VERSION } from "../version.ts";
import { type Connector, firstContact, sourceConnector } from "./connect.ts";
import { type DestControl, publishEvents, registerDestVerbs } from "./control.ts";
import { GuestParts } from "./guest.ts";
import type { DestPlan } from "./plan.ts";
import { destPresenceContext } from "./presence.ts";
import { progressOf, statusLine } from "./status.ts";

/** Resolves to the exit code. `onReady` is told, before the surroundings are, what is to be printed. */
export async function runDestMigration(
  plan: DestPlan,
  around: ServeSurroundings,
  onReady: (text: string) => void,
): Promise<number> {
  const stop = new StopRequest();
  stop.onSignals();
  onOutputClosed(() => stop.make("the reader of our output has left"));
  if (plan.serve.exitWithParent) stop.onParentExit();
  await using cleanup = new Cleanup();
  const { env, log } = around;
  let removePidFile = (): void => {};
  cleanup.defer(() => removePidFile());
  // Closed last: whoever told us to quit learns by its end that the images are let go.
  let closeControl = async (): Promise<void> => undefined;
  cleanup.defer(() => closeControl());

  const connector = await sourceConnector(env, plan, log);
  makeSocketPlace(plan.serve);
  await takeStateDirectory(env, plan.stateDirectory, cleanup);
  const guest = new GuestParts(plan, around);
  const migration = await openMigration(plan, around, { connector, guest });
  cleanup.defer(() => migration.close());
  cleanup.defer(() => guest.close());

  const events = new EventHub(env.clock);
  const known = { clients: 0, uris: [] as string[], exports: [] as readonly DestinationExport[] };
  const control: DestControl = {
    ...{ clock: env.clock, plan, migration, stop, events, startedMs: env.clock.nowMs(), guest: guest.arrival },
    milestones: new Milestones({
      ...{ clock: env.clock, events, possible: ["listening", "ready", "active", "hydrated", "complete"] as const },
    }),
    address: formatAddress(plan.from),
    exports: () => known.exports,
    clients: () => known.clients,
    uris: () => known.uris,
  };
  closeControl = await serveControl(control, around);
  const exports = await firstContact({ migration, connector, stop, plan });
  if (exports === undefined) return EXIT_OK;
  known.exports = exports;
  const { served } = await startServing(plan.serve, around, {
    exports: guestExports(
      exports.map((it) => ({ ...it, guest: guest.metered(it.guest), contexts: [destPresenceContext(it)] })),
    ),
    credentials: undefined,
    cleanup,
    onClientCount: (clients) => {
      known.clients = clients;
      events.publish("clients", { clients });
    },
  });
  const { uris, text } = readyLines(exports, served, { json: plan.serve.json });
  known.uris = uris;
  onStatusSignal(() => around.showStatus(statusLine(migration.status())));
  if (plan.serve.pidFile !== undefined) removePidFile = writePidFile(plan.serve.pidFile);
  control.milestones.reach("listening");
  onReady(text);
  around.announce(served);
  tellManager(migration, plan, around);
  cleanup.defer(() => sdNotify(around.notifySocket, ["STOPPING=1"]));

  using progress = new ProgressDisplay({
    form: plan.progress,
    output: process.stderr,
    read: whatChanged(() => progressOf(migration.status())),
  });
  migration.onEvent((event) => event.kind === "phase" && event.phase === "complete" && progress.stop());
  if (migration.phase === "complete") progress.stop();
  const why = await ended(migration, stop);
  progress.stop();
  events.publish("stopping", { why });
  log.info("stopping", { why });
  return EXIT_OK;
}

/** A destination may wait for its switchover for days: what has been shown is not shown again. */
function whatChanged(read: () => Progress | undefined): () => Progress | undefined {
  let shown = "";
  return () => {
    const progress = read();
    const text = JSON.stringify(progress);
    if (text === shown) return undefined;
    shown = text;
    return progress;
  };
}

async function openMigration(
  plan: DestPlan,
  { env, log }: ServeSurroundings,
  { connector, guest }: { readonly connector: Connector; readonly guest: GuestParts },
): Promise<DestinationMigration> {
  for (const { notice } of plan.images) if (notice !== undefined) log.warn(notice);
  const { stateDirectory, mode, earlyReads, onSourceLoss, sourceLossDeadlineMs, rateBytesPerSecond } = plan;
  const migration = await DestinationMigration.open({
    ...{ env, log, stateDirectory, mode, earlyReads, onSourceLoss, connect: connector.connect },
    disks: await storedIn(env, plan),
    bootId: await readBootId(),
    ...(sourceLossDeadlineMs !== undefined && { lossDeadlineMs: sourceLossDeadlineMs }),
    ...(rateBytesPerSecond !== undefined && { rate: rateBytesPerSecond }),
    ...guest.hooks,
  });
  guest.follow(migration);
  return migration;
}

/** The images, in the formats that were chosen for them. */
async function storedIn(env: Env, { images, overwriteDevice }: DestPlan): Promise<DestinationDisk[]> {
  const disks: DestinationDisk[] = [];
  for (const { name, image, format } of images) {
    const { device, records, store } = await findPlace(env, image, format);
    const mayTake = device && { mayTake: () => refuseToWriteOver(env, device, overwriteDevice) };
    if (device !== undefined) await takeDevice(env, device);
    disks.push({ name, image, records, format: store, ...mayTake });
  }
  return disks;
}

/** Returns how it is closed. */
async function serveControl(control: DestControl, { env, log }: ServeSurroundings): Promise<() => Promise<void>> {
  const registry = new VerbRegistry();
  registerDestVerbs(registry, control);
  publishEvents(control);
  const { control: path, label: name } = control.plan;
  const identity = { program: "blockferry", programVersion: VERSION, pid: process.pid, role: "dest" };
  const opened = await openControl({ path, name, registry, identity, clock: env.clock, log });
  return () => opened.close();
}

function tellManager(migration: DestinationMigration, plan: DestPlan, { notifySocket }: ServeSurroundings): void {
  const status = (): string => `STATUS=${printable(`${plan.label}: ${statusLine(migration.status())}`)}`;
  sdNotify(notifySocket, ["READY=1", status()]);
  migration.onEvent((event) => {
    if (event.kind === "phase") sdNotify(notifySocket, [status()]);
  });
}

/** Resolves to why it is over. Rejects when this destination will never have the disks. */
async function ended(migration: DestinationMigration, stop: StopRequest): Promise<string> {
  const over = migration.whenPhase("cancelled", "failed");
  over.catch(() => undefined);
  const why = await Promise.race([stop.wished, over.then(() => undefined)]);
  if (why !== undefined) return why;
  const { phase, lastError, owner } = migration.status();
  // Whose disks these are can only be told from the records, and whoever uses them keeps what it has.
  if (owner === "destination") return await stop.wished;
  const failed = phase === "failed";
  throw new CliError({
    exitCode: failed ? EXIT_UNAVAILABLE : EXIT_NO,
    code: phase,
    what: failed ? "the migration failed" : "the migration was called off",
    why: lastError ?? "the source has its disks",
    hint: "the disks are the source's; see `blockferry status` there, then start this command again",
  });
}
