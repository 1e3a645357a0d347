/** What `serve` can be asked on its control socket: `status`, `events`, `wait --for=listening`, `quit`. */
import { resolve } from "node:path";
import { EventHub, isoTime } from "../../control/event-hub.ts";
import { Milestones } from "../../control/milestones.ts";
import { chooseDisk } from "../../control/pages.ts";
import { VerbRegistry } from "../../control/registry.ts";
import type { DiskStatus, Status } from "../../control/status.ts";
import { VERBS } from "../../control/verbs.ts";
import type { Clock } from "../../env/clock.ts";
import type { Image } from "../../image/image.ts";
import { tableCheckStatus } from "../image/table-check-status.ts";
import { type OpenControl, openControl } from "../instance/open-control.ts";
import type { Log } from "../log.ts";
import type { ServePlan } from "../serving/plan.ts";
import type { StopRequest } from "../serving/stop-request.ts";
import { VERSION } from "../version.ts";

export interface ServeControlOptions {
  readonly plan: ServePlan;
  readonly path: string;
  readonly clock: Clock;
  readonly log: Log;
  /** What `quit` makes use of. */
  readonly stop: StopRequest;
}

/** What is known once clients can connect. */
export interface ServedDisk {
  readonly format: string;
  readonly image: Image;
  readonly uri: string;
}

export class ServeControl {
  readonly #options: ServeControlOptions;
  readonly #events: EventHub;
  readonly #milestones: Milestones;
  /** Absolute, while the working directory is still the operator's. */
  readonly #image: string;
  readonly #startedAt: string;
  readonly #startedMs: number;
  #state: Status["state"] = "starting";
  #served: ServedDisk | undefined;
  #clients = 0;
  #open: OpenControl | undefined;

  /** Listens, so that whoever started us can wait for the rest. */
  static async open(options: ServeControlOptions): Promise<ServeControl> {
    const control = new ServeControl(options);
    const registry = new VerbRegistry();
    control.#registerVerbs(registry);
    const identity = { program: "blockferry", programVersion: VERSION, pid: process.pid, role: "serve" };
    const { path, clock, log } = options;
    control.#open = await openControl({ path, registry, identity, clock, log });
    return control;
  }

  private constructor(options: ServeControlOptions) {
    const { clock } = options;
    this.#options = options;
    this.#image = resolve(options.plan.image);
    this.#events = new EventHub(clock);
    this.#milestones = new Milestones({ clock, possible: ["listening"], events: this.#events });
    this.#startedAt = isoTime(clock);
    this.#startedMs = clock.nowMs();
  }

  /** Clients can connect. */
  listening(served: ServedDisk): void {
    this.#served = served;
    this.#state = "running";
    this.#milestones.reach("listening");
  }

  clientsChanged(clients: number): void {
    this.#clients = clients;
    this.#events.publish("clients", { clients });
  }

  stopping(why: string): void {
    this.#state = "stopping";
    this.#events.publish("stopping", { why });
  }

  async close(): Promise<void> {
    await this.#open?.close();
  }

  #registerVerbs(registry: VerbRegistry): void {
    this.#events.registerVerbs(registry);
    this.#milestones.registerVerbs(registry);
    registry.register("status", VERBS.status, ({ disk }) => this.#status(disk));
    registry.register("quit", VERBS.quit, () => {
      this.#options.stop.make("quit on the control socket");
      return {};
    });
  }

  #status(diskName: string | undefined): Status {
    const disks = this.#disks();
    return {
      program: "blockferry",
      version: VERSION,
      pid: process.pid,
      role: "serve",
      state: this.#state,
      startedAt: this.#startedAt,
      uptimeSeconds: Math.round(this.#options.clock.nowMs() - this.#startedMs) / 1000,
      reached: this.#milestones.reached,
      disks: diskName === undefined ? disks : [chooseDisk(disks, diskName)],
      clients: this.#clients,
      uris: this.#served === undefined ? [] : [this.#served.uri],
      next: null,
    };
  }

  /** All of the image is here, and always was. */
  #disks(): DiskStatus[] {
    if (this.#served === undefined) return [];
    const { format, image } = this.#served;
    const { sizeBytes } = image;
    const { exportName: name, readOnly } = this.#options.plan;
    return [
      {
        name,
        image: this.#image,
        format,
        readOnly,
        sizeBytes,
        clusterBytes: null,
        localBytes: sizeBytes,
        missingBytes: 0,
        state: "concluded",
        hydration: null,
        source: null,
        ...tableCheckStatus(image),
      },
    ];
  }
}
