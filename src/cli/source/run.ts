/**
 * Carries a `SourcePlan` out: opens the images, serves them to the guest, listens for a destination, until told to stop.
 * Every step that succeeded is undone in reverse, also when a later one fails. Stopping changes nobody's ownership.
 */
import { EventHub } from "../../control/event-hub.ts";
import { Milestones } from "../../control/milestones.ts";
import { VerbRegistry } from "../../control/registry.ts";
import type { Address } from "../../env/links.ts";
import { formatAddress } from "../../env/links.ts";
import { SourceMigration } from "../../migrate/source.ts";
import { NbdServer } from "../../nbd/server/server.ts";
import { listenOn } from "../../os/listen.ts";
import { sdNotify } from "../../os/sd-notify.ts";
import { NodeTlsServer } from "../../os/tls.ts";
import type { TlsCredentials } from "../../os/tls-credentials.ts";
import { Cleanup } from "../cleanup.ts";
import { onOutputClosed, onStatusSignal } from "../early-signals.ts";
import { EXIT_OK } from "../exit-codes.ts";
import { openControl } from "../instance/open-control.ts";
import { makeSocketPlace, readyLines } from "../migration/guest-side.ts";
import { WriteMeter } from "../migration/metered-device.ts";
import { takeStateDirectory } from "../migration/state-directory.ts";
import { listenForTunnels } from "../migration/tunnels.ts";
import { writePidFile } from "../serving/pid-file.ts";
import { loadCredentials, type ServeSurroundings } from "../serving/start.ts";
import { StopRequest } from "../serving/stop-request.ts";
import { VERSION } from "../version.ts";
import { publishEvents, registerSourceVerbs, type SourceControl } from "./control.ts";
import { GuestMove } from "./guest-move.ts";
import { openImages } from "./images.ts";
import { LateImages } from "./late-images.ts";
import { destLine, type SourcePlan } from "./plan.ts";
import { serveGuest } from "./serve-guest.ts";
import { statusLine } from "./status.ts";
import { switchOnRequest } from "./switchover.ts";

/** Resolves to the exit code. `onReady` is told, before the surroundings are, what is to be printed. */
export async function runSourceMigration(
  plan: SourcePlan,
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

  const credentials = await loadCredentials(plan.tls, around);
  if (!plan.lateOpen) makeSocketPlace(plan.serve);
  await takeStateDirectory(env, plan.stateDirectory, cleanup);
  const { late, disks } = await openImages(plan, env, { log, cleanup });
  const meter = new WriteMeter(env.clock);
  const migration: SourceMigration = await SourceMigration.open({
    ...{ env, stateDirectory: plan.stateDirectory, log, late: plan.lateOpen, rate: plan.rateBytesPerSecond },
    disks: disks.map(({ name, records, device }) => ({ name, image: records, device })),
    onSwitchRequest: (force) => switchOnRequest({ clock: env.clock, migration, disks, meter, guest }, force),
  });
  cleanup.defer(() => migration.close());
  const lateImages = late && new LateImages(late, log);
  const guest = plan.qmp && (await GuestMove.open({ ...plan, env, log, migration, qmp: plan.qmp, late: lateImages }));
  cleanup.defer(() => guest?.close());
  // An earlier life of ours has given them away: QEMU is done with them.
  if (migration.phase !== "setup") await lateImages?.open();

  const registry = new VerbRegistry();
  const events = new EventHub(env.clock);
  const milestones = new Milestones({
    ...{ clock: env.clock, events, possible: ["listening", "ready", "active", "hydrated", "complete"] as const },
  });
  const known = { clients: 0, uris: [] as string[], link: plan.link as Address };
  const control: SourceControl = {
    ...{ clock: env.clock, migration, disks, meter, guest, stop, events, milestones, startedMs: env.clock.nowMs() },
    linkAddress: () => formatAddress(known.link),
    destLine: () => destLine(plan, known.link),
    clients: () => known.clients,
    uris: () => known.uris,
  };
  registerSourceVerbs(registry, control);
  publishEvents(control);
  const identity = { program: "blockferry", programVersion: VERSION, pid: process.pid, role: "source" };
  const opened = await openControl({
    ...{ path: plan.control, name: plan.label, registry, identity, clock: env.clock, log },
  });
  closeControl = () => opened.close();

  const served = await serveGuest(plan, around, { migration, meter, cleanup }, (clients) => {
    known.clients = clients;
    events.publish("clients", { clients });
  });
  known.link = await listenForDestination(plan, around, { migration, credentials, cleanup });
  await listenForTunnels({ tunnels: plan.tunnels, open: (name) => migration.openTunnel(name), log, cleanup });
  const extra = { dest: control.destLine() };
  const { uris, text } = readyLines(late === undefined ? disks : [], served, { json: plan.serve.json, extra });
  known.uris = uris;
  onStatusSignal(() => around.showStatus(statusLine(migration.status())));
  if (plan.serve.pidFile !== undefined) removePidFile = writePidFile(plan.serve.pidFile);
  milestones.reach("listening");
  log.info("offering disks", { disks: disks.map(({ name }) => name), link: formatAddress(known.link) });
  onReady(text);
  around.announce(served);
  sdNotify(around.notifySocket, ["READY=1", `STATUS=Source of ${plan.label}: ${migration.phase}`]);
  migration.onEvent((event) => {
    if (event.kind === "phase") sdNotify(around.notifySocket, [`STATUS=Source of ${plan.label}: ${event.phase}`]);
  });
  cleanup.defer(() => sdNotify(around.notifySocket, ["STOPPING=1"]));

  const why = await stop.wished;
  guest?.close();
  events.publish("stopping", { why });
  log.info("stopping", { why });
  return EXIT_OK;
}

interface LinkParts {
  readonly migration: SourceMigration;
  readonly credentials: TlsCredentials | undefined;
  readonly cleanup: Cleanup;
}

/** The port that destinations dial; plain NBD clients may read there. Resolves to where it is. */
async function listenForDestination(
  plan: SourcePlan,
  { env, log }: ServeSurroundings,
  { migration, credentials, cleanup }: LinkParts,
): Promise<Address> {
  const verifyPeer = credentials?.kind === "x509";
  const server = new NbdServer({
    ...{ clock: env.clock, log, upgrade: migration.upgrade },
    exports: migration.exports.map(({ name, plain }) => ({ name, device: plain, readOnly: true })),
    ...(credentials && { tls: { mode: "require" as const, server: new NodeTlsServer({ credentials, verifyPeer }) } }),
  });
  cleanup.defer(() => server.close());
  const listener = await listenOn(plan.link, (stream) => server.accept(stream));
  cleanup.defer(() => listener.close());
  return listener.address;
}
