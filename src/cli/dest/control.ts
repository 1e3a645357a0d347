/** What a running destination answers on its control socket. */
import { ControlError } from "../../control/errors.ts";
import type { EventHub } from "../../control/event-hub.ts";
import type { Milestones } from "../../control/milestones.ts";
import { chooseDisk, mapPage, missingPage } from "../../control/pages.ts";
import type { VerbRegistry } from "../../control/registry.ts";
import { type ResultOf, VERBS } from "../../control/verbs.ts";
import type { Clock } from "../../env/clock.ts";
import type { DestinationMigration } from "../../migrate/destination.ts";
import type { DestinationExport } from "../../migrate/destination-options.ts";
import type { DestinationPhase } from "../../migrate/phases.ts";
import { asVerb } from "../migration/refusals.ts";
import type { StopRequest } from "../serving/stop-request.ts";
import { VERSION } from "../version.ts";
import type { GuestArrival } from "./guest-arrival.ts";
import type { DestPlan } from "./plan.ts";
import { destPresenceSource } from "./presence.ts";
import { diskStatus, migrationStatus, nextStep, overallState } from "./status.ts";
import { switchover } from "./switchover.ts";

export interface DestControl {
  readonly clock: Clock;
  readonly plan: DestPlan;
  readonly migration: DestinationMigration;
  /** Where the guest comes with its disks. */
  readonly guest: GuestArrival | undefined;
  readonly stop: StopRequest;
  readonly events: EventHub;
  readonly milestones: Milestones;
  readonly startedMs: number;
  /** Where the source is. */
  readonly address: string;
  /** Empty until the first contact. */
  exports(): readonly DestinationExport[];
  clients(): number;
  uris(): string[];
}

/** Registers every verb that a destination knows. */
export function registerDestVerbs(registry: VerbRegistry, control: DestControl): void {
  const { migration, stop, events, milestones } = control;
  events.registerVerbs(registry);
  milestones.registerVerbs(registry);
  const presence = (disk: string | undefined) => destPresenceSource(chooseDisk(known(control), disk));
  registry.register("map", VERBS.map, ({ disk, cursor }) => mapPage(presence(disk), cursor));
  registry.register("missing", VERBS.missing, ({ disk, cursor }) => missingPage(presence(disk), cursor));
  registry.register("status", VERBS.status, ({ disk }) => destStatus(control, disk));
  // All disks of a guest move together, at one pace.
  registry.register("pause", VERBS.pause, () => {
    migration.pause();
    return {};
  });
  registry.register("resume", VERBS.resume, () => {
    migration.resume();
    return {};
  });
  registry.register("set-speed", VERBS["set-speed"], ({ bytesPerSecond }) => {
    known(control);
    migration.setRate(bytesPerSecond ?? undefined);
    events.publish("speed", { bytesPerSecond });
    return { bytesPerSecond };
  });
  registry.register("switchover", VERBS.switchover, (params, { signal }) =>
    asVerb(switchover({ migration, guest: control.guest }, params, signal)),
  );
  registry.register("cancel", VERBS.cancel, async ({ reason }) => {
    await asVerb(migration.cancel(reason));
    return {};
  });
  registry.register("reclaim", VERBS.reclaim, () => {
    throw new ControlError("unavailable", "a destination cannot take disks back", "reclaim is for the source's host");
  });
  registry.register("quit", VERBS.quit, () => {
    stop.make("asked on the control socket");
    return {};
  });
}

function known(control: DestControl): readonly DestinationExport[] {
  const exports = control.exports();
  if (exports.length > 0) return exports;
  throw new ControlError(
    "unavailable",
    "the source has not been met yet",
    "wait for it: blockferry wait --for=listening",
  );
}

function destStatus(control: DestControl, diskName: string | undefined): ResultOf<"status"> {
  const { clock, plan, migration, milestones, startedMs, stop, address } = control;
  const status = migration.status();
  const upMs = clock.nowMs() - startedMs;
  const wallMs = clock.wallMs();
  const disks = diskName === undefined ? plan.images : [chooseDisk(plan.images, diskName)];
  const clusterBytes = (name: string): number | null =>
    control
      .exports()
      .find((it) => it.name === name)
      ?.overlay()?.clusterBytes ?? null;
  return {
    ...{ program: "blockferry", version: VERSION, pid: process.pid, role: "dest" },
    state: stop.isMade ? "stopping" : overallState(status),
    startedAt: new Date(wallMs - upMs).toISOString(),
    uptimeSeconds: upMs / 1000,
    reached: milestones.reached,
    disks: disks.map((disk) => diskStatus({ disk, status, address, wallMs, clusterBytes: clusterBytes(disk.name) })),
    clients: control.clients(),
    uris: control.uris(),
    migration: migrationStatus(status, address, control.guest?.status()),
    next: nextStep(status),
  };
}

/** What a phase means to whoever waits. */
const REACHED: Readonly<Partial<Record<DestinationPhase, readonly ("ready" | "active" | "hydrated" | "complete")[]>>> =
  {
    ready: ["ready"],
    active: ["ready", "active"],
    hydrated: ["ready", "active", "hydrated"],
    complete: ["ready", "active", "hydrated", "complete"],
  };

/** Tells subscribers, and whoever waits, of what happens. Until the migration is closed. */
export function publishEvents({ migration, events, milestones }: DestControl): void {
  const reach = (phase: DestinationPhase): void => {
    for (const milestone of REACHED[phase] ?? []) milestones.reach(milestone);
  };
  migration.onEvent((event) => {
    if (event.kind === "phase") {
      events.publish("phase", { phase: event.phase });
      reach(event.phase);
    } else if (event.kind === "link") events.publish(event.connected ? "link-connected" : "link-disconnected");
    else events.publish("warning", { message: event.message });
  });
  // After a restart it begins further on.
  reach(migration.phase);
}
