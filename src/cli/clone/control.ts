/** What a running clone answers on its control socket. */
import type { EventHub } from "../../control/event-hub.ts";
import type { Milestones } from "../../control/milestones.ts";
import { chooseDisk, registerPages } from "../../control/pages.ts";
import type { VerbRegistry } from "../../control/registry.ts";
import type { ResultOf } from "../../control/verbs.ts";
import { VERBS } from "../../control/verbs.ts";
import type { Clock } from "../../env/clock.ts";
import type { SourceState } from "../../stream/source-session.ts";
import type { StopRequest } from "../serving/stop-request.ts";
import { VERSION } from "../version.ts";
import type { CloneParts } from "./parts.ts";
import type { ClonePlan } from "./plan.ts";
import { presenceSource } from "./presence.ts";
import { diskState, hydrationStatus, nextStep, overallState, sourceStatus, stallStatus } from "./status.ts";

export interface CloneControl {
  readonly clock: Clock;
  readonly plan: ClonePlan;
  readonly parts: CloneParts;
  readonly stop: StopRequest;
  readonly events: EventHub;
  readonly milestones: Milestones;
  readonly startedMs: number;
  /** Clients in transmission. */
  clients(): number;
  uris(): string[];
}

/** Registers every verb that a clone knows. */
export function registerCloneVerbs(registry: VerbRegistry, control: CloneControl): void {
  const { parts, stop, events, milestones, plan } = control;
  const name = plan.serve.exportName;
  const { hydrator, overlay } = parts;
  const disks = [{ name }];
  events.registerVerbs(registry);
  milestones.registerVerbs(registry);
  registerPages(registry, [presenceSource(overlay, name)]);
  registry.register("status", VERBS.status, ({ disk }) => {
    if (disk !== undefined) chooseDisk(disks, disk);
    return cloneStatus(control);
  });
  registry.register("pause", VERBS.pause, ({ disk }) => {
    chooseDisk(disks, disk);
    hydrator.pause();
    return {};
  });
  registry.register("resume", VERBS.resume, ({ disk }) => {
    chooseDisk(disks, disk);
    hydrator.resume();
    return {};
  });
  registry.register("set-speed", VERBS["set-speed"], ({ disk, bytesPerSecond }) => {
    chooseDisk(disks, disk);
    hydrator.setRate(bytesPerSecond ?? undefined);
    events.publish("speed", { bytesPerSecond });
    return { bytesPerSecond };
  });
  registry.register("quit", VERBS.quit, () => {
    stop.make("asked on the control socket");
    return {};
  });
}

export function cloneStatus(control: CloneControl): ResultOf<"status"> {
  const { clock, plan, parts, milestones, startedMs, stop } = control;
  const progress = parts.hydrator.progress();
  const source = parts.demand.status();
  const nowMs = clock.nowMs();
  const wallMs = clock.wallMs();
  return {
    program: "blockferry",
    version: VERSION,
    pid: process.pid,
    role: "clone",
    state: stop.isMade ? "stopping" : overallState(progress),
    startedAt: new Date(wallMs - (nowMs - startedMs)).toISOString(),
    uptimeSeconds: (nowMs - startedMs) / 1000,
    reached: milestones.reached,
    disks: [
      {
        name: plan.serve.exportName,
        image: plan.serve.image,
        format: plan.format.name,
        readOnly: false,
        sizeBytes: progress.totalBytes,
        clusterBytes: parts.overlay.clusterBytes,
        localBytes: progress.localBytes,
        missingBytes: progress.missingBytes,
        state: diskState(progress),
        hydration: hydrationStatus(progress),
        stalls: stallStatus(parts.guest.stalls()),
        source: sourceStatus(plan.source.uri, source, wallMs),
      },
    ],
    clients: control.clients(),
    uris: control.uris(),
    next: nextStep(progress, source.state),
  };
}

/** Tells subscribers, and whoever waits, of what happens to the parts. Until the parts are gone. */
export function publishEvents({
  parts,
  events,
  milestones,
}: Pick<CloneControl, "parts" | "events" | "milestones">): void {
  parts.hydrator.onState((state) => {
    const { missingBytes } = parts.hydrator.progress();
    events.publish(`hydration-${state}`, { missingBytes });
    if (state !== "complete") return;
    milestones.reach("hydrated");
    milestones.reach("complete");
  });
  const tellSource = (state: SourceState): void =>
    void events.publish(`source-${state}`, { why: parts.demand.status().lastError ?? null });
  parts.demand.onState(tellSource);
  // It may have been connected before anybody could listen.
  if (parts.demand.state !== "connecting") tellSource(parts.demand.state);
}
