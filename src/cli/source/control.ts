/** What a running source answers on its control socket. */
import { ControlError } from "../../control/errors.ts";
import type { EventHub } from "../../control/event-hub.ts";
import type { Milestones } from "../../control/milestones.ts";
import { chooseDisk, registerPages } from "../../control/pages.ts";
import type { VerbRegistry } from "../../control/registry.ts";
import { type ResultOf, VERBS } from "../../control/verbs.ts";
import type { Clock } from "../../env/clock.ts";
import type { SourcePhase } from "../../migrate/phases.ts";
import type { SourceMigration } from "../../migrate/source.ts";
import type { WriteMeter } from "../migration/metered-device.ts";
import { asVerb } from "../migration/refusals.ts";
import type { StopRequest } from "../serving/stop-request.ts";
import { VERSION } from "../version.ts";
import type { GuestMove } from "./guest-move.ts";
import type { OpenedDisk } from "./images.ts";
import { diskStatus, migrationStatus, nextStep, overallState } from "./status.ts";
import { switchover } from "./switchover.ts";

export interface SourceControl {
  readonly clock: Clock;
  readonly migration: SourceMigration;
  readonly disks: readonly OpenedDisk[];
  readonly meter: WriteMeter;
  /** Where the guest moves with its disks. */
  readonly guest: GuestMove | undefined;
  readonly stop: StopRequest;
  readonly events: EventHub;
  readonly milestones: Milestones;
  readonly startedMs: number;
  /** Where the link listens. */
  linkAddress(): string;
  /** What to run on the other host. */
  destLine(): string;
  clients(): number;
  uris(): string[];
}

/** Registers every verb that a source knows. */
export function registerSourceVerbs(registry: VerbRegistry, control: SourceControl): void {
  const { migration, stop, events, milestones, disks } = control;
  events.registerVerbs(registry);
  milestones.registerVerbs(registry);
  // Nothing is missing here, whoever owns it.
  const whole = disks.map(({ name, device }) => ({ name, sizeBytes: device.sizeBytes, missing: () => [] }));
  registerPages(registry, whole);
  registry.register("status", VERBS.status, ({ disk }) => sourceStatus(control, disk));
  for (const verb of ["pause", "resume", "set-speed"] as const) {
    registry.register<(typeof VERBS)[typeof verb]["params"], (typeof VERBS)[typeof verb]["result"]>(
      verb,
      VERBS[verb],
      () => {
        throw new ControlError("unavailable", "the destination pulls, at its own pace", "ask the destination");
      },
    );
  }
  registry.register("switchover", VERBS.switchover, (params, { signal }) =>
    asVerb(switchover(control, params, signal)),
  );
  registry.register("cancel", VERBS.cancel, async ({ reason }) => {
    await asVerb(control.guest?.cancel(reason) ?? Promise.resolve());
    await asVerb(migration.cancel(reason));
    return {};
  });
  registry.register("reclaim", VERBS.reclaim, async () => {
    await asVerb(migration.reclaim());
    return {};
  });
  registry.register("quit", VERBS.quit, () => {
    stop.make("asked on the control socket");
    return {};
  });
}

function sourceStatus(control: SourceControl, diskName: string | undefined): ResultOf<"status"> {
  const { clock, migration, milestones, startedMs, stop } = control;
  const now = migration.status();
  const upMs = clock.nowMs() - startedMs;
  const disks = diskName === undefined ? control.disks : [chooseDisk(control.disks, diskName)];
  return {
    ...{ program: "blockferry", version: VERSION, pid: process.pid, role: "source" },
    state: stop.isMade ? "stopping" : overallState(now),
    startedAt: new Date(clock.wallMs() - upMs).toISOString(),
    uptimeSeconds: upMs / 1000,
    reached: milestones.reached,
    disks: disks.map((disk) => diskStatus(disk, now)),
    clients: control.clients(),
    uris: control.uris(),
    migration: migrationStatus(now, control.linkAddress(), control.guest?.status()),
    next: nextStep(now, control.destLine()),
  };
}

/** What a phase means to whoever waits. */
const REACHED: Readonly<Partial<Record<SourcePhase, readonly ("ready" | "active" | "hydrated" | "complete")[]>>> = {
  ready: ["ready"],
  serving: ["ready", "active"],
  released: ["ready", "active", "hydrated", "complete"],
};

/** Tells subscribers, and whoever waits, of what happens. Until the migration is closed. */
export function publishEvents({ migration, events, milestones }: SourceControl): void {
  const reach = (phase: SourcePhase): void => {
    if (phase === "setup") milestones.forget("ready", "active");
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
