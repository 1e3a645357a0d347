/** The guest of a destination, joined to its disks: its arrival, what it writes, and its pause while the source is away. */
import type { BlockDevice } from "../../block/device.ts";
import type { Channel } from "../../link/channel.ts";
import type { DestinationMigration } from "../../migrate/destination.ts";
import { MeteredDevice, WriteMeter } from "../migration/metered-device.ts";
import { GUEST_TUNNEL, MEMORY_TUNNEL } from "../migration/qmp.ts";
import { TunnelExits } from "../migration/tunnels.ts";
import type { ServeSurroundings } from "../serving/start.ts";
import { GuestArrival } from "./guest-arrival.ts";
import { LossWatch } from "./loss-watch.ts";
import type { DestPlan } from "./plan.ts";

export class GuestParts {
  /** With `--qmp`. */
  readonly arrival: GuestArrival | undefined;
  readonly #plan: DestPlan;
  readonly #around: ServeSurroundings;
  readonly #exits: TunnelExits;
  readonly #meter: WriteMeter;
  #migration: DestinationMigration | undefined;
  #watch: LossWatch | undefined;

  constructor(plan: DestPlan, around: ServeSurroundings) {
    const { env, log } = around;
    const { qmp, tunnels } = plan;
    this.#plan = plan;
    this.#around = around;
    this.#meter = new WriteMeter(env.clock, () => this.arrival?.guestWrote());
    const memory = qmp === undefined ? [] : [{ name: MEMORY_TUNNEL, path: qmp.memoryPath }];
    this.#exits = new TunnelExits([...tunnels, ...memory], env.links, log);
    const ownsDisks = (): boolean => this.#migration?.status().owner === "destination";
    this.arrival = qmp && new GuestArrival({ env, log, qmp, ownsDisks });
  }

  /** For the migration, when it is made. */
  get hooks() {
    const { arrival } = this;
    return {
      onTunnel: (name: string, channel: Channel): void => {
        if (name === GUEST_TUNNEL && arrival !== undefined) arrival.take(channel);
        else this.#exits.take(name, channel);
      },
      tunnelsIdle: async (): Promise<void> => {
        await this.#exits.idle();
        await arrival?.idle();
      },
      mayComplete: async (): Promise<void> => await arrival?.settled(),
    };
  }

  /** Once it is made. */
  follow(migration: DestinationMigration): void {
    this.#migration = migration;
    const { env, log } = this.#around;
    const { qmp, pausesGuest } = this.#plan;
    if (qmp === undefined || !pausesGuest) return;
    const watch = new LossWatch({ env, log, qmp });
    this.#watch = watch;
    migration.onEvent((event) => {
      const { phase } = this.arrival?.status() ?? {};
      const isHere = migration.phase === "active" && (phase === "idle" || phase === "started");
      if (event.kind === "link" && isHere) watch.onLink(event.connected);
    });
  }

  /** As the guest uses it: its first change tells that it runs here, whoever has started it. */
  metered(device: BlockDevice): BlockDevice {
    return this.arrival === undefined ? device : new MeteredDevice(device, this.#meter);
  }

  close(): void {
    this.#watch?.close();
    this.arrival?.close();
  }
}
