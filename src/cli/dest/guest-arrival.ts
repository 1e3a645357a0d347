/**
 * `dest --qmp`: the guest's memory comes to the QEMU of this host, by order of the source. That QEMU was started with
 * `-S -incoming defer`; it is told where to listen, and to run the guest when the disks are here and the source says so.
 *
 * Invariants
 * - `cont` is only said when the source has ordered it and the disks are this host's.
 * - While a guest is on its way the disks do not count as complete: until then they can be given back.
 */
import { rmSync } from "node:fs";
import type { Env } from "../../env/env.ts";
import type { ByteStream } from "../../env/links.ts";
import { QmpClient } from "../../qmp/client.ts";
import { type DestinationOutcome, type GateResult, runDestination } from "../../qmp/destination.ts";
import { QmpError } from "../../qmp/errors.ts";
import { type Answer, clip, GuestLine, Order } from "../../qmp/guest-line.ts";
import type { StatusInfo } from "../../qmp/messages.ts";
import { Change } from "../../stream/change.ts";
import type { Log } from "../log.ts";
import { type QmpPlan, qmpProblem } from "../migration/qmp.ts";

export interface GuestArrivalOptions {
  readonly env: Pick<Env, "clock" | "links">;
  readonly log: Log;
  readonly qmp: QmpPlan;
  /** The disks are this host's. */
  readonly ownsDisks: () => boolean;
}

export type ArrivalPhase = "idle" | "waiting" | "arriving" | "arrived" | "started" | "abandoned" | "failed";

/** As JSON. */
export interface GuestArrivalStatus {
  readonly phase: ArrivalPhase;
  readonly lastError: string | undefined;
}

type Line = GuestLine<typeof Order, Answer>;

/** One QEMU's conversation, from the order to receive to the end. */
interface Arriving {
  readonly client: QmpClient;
  readonly gate: PromiseWithResolvers<GateResult>;
  readonly outcome: Promise<DestinationOutcome>;
}

const UNDER_WAY: readonly ArrivalPhase[] = ["waiting", "arriving", "arrived"];
const RUNS_HERE = "the guest runs here already";
const INCOMING = "start it with -S -incoming defer";

export class GuestArrival {
  readonly #options: GuestArrivalOptions;
  readonly #change = new Change();
  readonly #open = new Set<Line>();
  #status: GuestArrivalStatus = { phase: "idle", lastError: undefined };
  #arriving: Arriving | undefined;
  /** Undefined: who has received it is not the process any more that knew. */
  #guestWasRunning: boolean | undefined;
  #inTransit = false;

  constructor(options: GuestArrivalOptions) {
    this.#options = options;
  }

  status(): GuestArrivalStatus {
    return this.#status;
  }

  /** The source orders over `channel`. */
  take(channel: ByteStream): void {
    const line: Line = new GuestLine(channel, Order, {
      onMessage: (order) => void this.#answer(line, order),
      onClose: () => {
        this.#open.delete(line);
        this.#change.notify();
      },
    });
    this.#open.add(line);
  }

  /** Resolves when the source has nothing to order. */
  async idle(): Promise<void> {
    while (this.#open.size > 0) await this.#change.next();
  }

  /** Resolves when no guest is on its way. */
  async settled(): Promise<void> {
    while (this.#inTransit) await this.#change.next();
  }

  /** Resolves when the last guest that was to come runs here, or will not. */
  async outcome(): Promise<GuestArrivalStatus> {
    while (UNDER_WAY.includes(this.#status.phase)) await this.#change.next();
    return this.#status;
  }

  /** Somebody else has let a guest run: it has written. */
  guestWrote(): void {
    this.#inTransit = false;
    this.#change.notify();
  }

  /** Why no guest could be received now; empty: one could. */
  async problems(): Promise<string[]> {
    try {
      using client = await this.#dial();
      const { status } = await client.execute("query-status");
      return status === "inmigrate" ? [] : [`the destination's QEMU is in state "${status}": ${INCOMING}`];
    } catch (error) {
      return [`on the destination: ${(error as Error).message}`];
    }
  }

  close(): void {
    this.#arriving?.client.close();
    for (const line of this.#open) line.destroy();
    rmSync(this.#options.qmp.memoryPath, { force: true });
  }

  async #answer(line: Line, order: Order): Promise<void> {
    try {
      line.send(await this.#carryOut(order));
    } catch (error) {
      const problem = qmpProblem(error);
      const { code, message, hint } = problem ?? {
        code: "state" as const,
        message: String(error),
        hint: "see the log",
      };
      this.#options.log.warn("the guest cannot be taken", { order: order.type, why: message });
      line.send({ type: "cannot", code, reason: clip(message), hint: clip(hint) });
    }
  }

  async #carryOut(order: Order): Promise<Answer> {
    switch (order.type) {
      case "check":
        return { type: "checked", problems: (await this.problems()).map(clip) };
      case "receive":
        this.#guestWasRunning = order.guestWasRunning;
        await this.#receive();
        return { type: "listening" };
      case "look":
        return { type: "seen", arrived: await this.#hasArrived() };
      case "start": {
        // Where nobody knows any more, an operator may have paused it.
        const { running, status } = await this.#start(order.guestWasRunning ?? this.#guestWasRunning ?? false);
        return { type: "started", running, status };
      }
      case "abandon":
        await this.#abandon(order.reason);
        return { type: "abandoned" };
    }
  }

  /** Resolves when QEMU listens. */
  async #receive(): Promise<void> {
    this.#arriving?.client.close();
    const client = await this.#dial();
    const { status } = await client.execute("query-status");
    if (status !== "inmigrate") {
      client.close();
      throw new QmpError("state", `QEMU is in state "${status}", and waits for no guest`, { hint: INCOMING });
    }
    const listening = Promise.withResolvers<void>();
    const { memoryUri } = this.#options.qmp;
    const arriving = this.#follow(client, { incomingUri: memoryUri, onListening: () => listening.resolve() });
    this.#inTransit = true;
    this.#note("waiting");
    const ended = arriving.outcome.then((outcome) => {
      if (outcome.kind !== "started") throw outcome.reason;
    });
    await Promise.race([listening.promise, ended]).catch((error: unknown) => {
      // Nothing of a guest has come, and nothing will.
      this.#inTransit = false;
      this.#change.notify();
      throw error;
    });
  }

  #follow(client: QmpClient, how: { incomingUri?: string; onListening?: () => void } = {}): Arriving {
    const gate = Promise.withResolvers<GateResult>();
    gate.promise.catch(() => undefined);
    const mayStart = (): Promise<GateResult> => {
      this.#note("arrived");
      return gate.promise;
    };
    const onProgress = ({ status }: { status?: string | undefined }): void => {
      if (status === "active") this.#note("arriving");
    };
    const outcome = runDestination({ client, gate: { mayStart }, onProgress, ...how });
    const arriving = { client, gate, outcome };
    this.#arriving = arriving;
    outcome
      .then(
        (ended) => this.#ended(arriving, ended.kind, ended.kind === "started" ? undefined : ended.reason),
        (error: Error) => this.#ended(arriving, "failed", error),
      )
      .finally(() => client.close());
    return arriving;
  }

  #ended(arriving: Arriving, kind: DestinationOutcome["kind"], reason: Error | undefined): void {
    if (this.#arriving !== arriving) return;
    // One that has started may be ordered to start again, and has. After any other end the disks may have to go back.
    if (kind === "started") this.#inTransit = false;
    else this.#arriving = undefined;
    if (reason !== undefined) this.#options.log.warn("the guest has not come", { why: reason.message });
    this.#note(kind, reason?.message);
  }

  async #start(guestWasRunning: boolean): Promise<StatusInfo> {
    if (!this.#options.ownsDisks()) throw new QmpError("state", "the disks are not this host's");
    // Whoever was restarted in between finds all of the guest in QEMU.
    const { gate, outcome } = this.#arriving ?? this.#follow(await this.#dial());
    gate.resolve({ kind: "start", guestWasRunning });
    const ended = await outcome;
    if (ended.kind === "started") return ended.guest;
    throw ended.reason;
  }

  /** Whether all of a guest is in QEMU; false: there is none, or one that waits for a guest. Rejects if that cannot be told. */
  async #hasArrived(): Promise<boolean> {
    const talking = UNDER_WAY.includes(this.#status.phase) ? this.#arriving?.client : undefined;
    let client = talking;
    try {
      client ??= await this.#dial();
      const guest = await client.execute("query-status");
      if (guest.running) throw new QmpError("state", RUNS_HERE);
      if (guest.status === "inmigrate") return false;
      const { status } = await client.execute("query-migrate");
      if (status === "completed") return true;
      throw new QmpError("state", `QEMU is in state "${guest.status}", and no guest has come in`, { hint: INCOMING });
    } catch (error) {
      if (error instanceof QmpError && error.code === "closed") return false;
      throw error;
    } finally {
      if (client !== talking) client?.close();
    }
  }

  /** Resolves when there is no QEMU that could run it. */
  async #abandon(reason: string): Promise<void> {
    if (this.#status.phase === "started") throw new QmpError("state", RUNS_HERE);
    const arriving = this.#arriving;
    const client = arriving?.client ?? (await this.#dial().catch(() => undefined));
    // It is gone: QEMU ends by itself when a migration fails that comes in.
    if (client === undefined) return;
    try {
      if ((await client.execute("query-status")).running) throw new QmpError("state", RUNS_HERE);
      arriving?.gate.resolve({ kind: "abandon", reason: new Error(reason) });
      await client.execute("quit");
      await client.closed;
    } catch (error) {
      if (!(error instanceof QmpError && error.code === "closed")) throw error;
    } finally {
      if (arriving === undefined) client.close();
    }
    this.#note("abandoned", reason);
  }

  #dial(): Promise<QmpClient> {
    const { env, qmp } = this.#options;
    return QmpClient.dial(env, qmp.address);
  }

  #note(phase: ArrivalPhase, lastError?: string): void {
    if (this.#status.phase === phase && this.#status.lastError === lastError) return;
    this.#options.log.info("a guest", { phase });
    this.#status = { phase, lastError };
    this.#change.notify();
  }
}
