/**
 * The destination's side of a migration: it offers the disks to its guest before it has them, pulls what it can, takes
 * them over when they are granted, and fetches the rest.
 *
 * Invariants
 * - One record decides for all disks: this host is the owner from the instant ACTIVE is durable. Nothing that a guest
 *   could rely on is done before, and nothing is granted twice: a term that was taken up, declined or passed is over.
 * - The source is told of what is written down, after it was.
 * - What the source says is taken in the order of its saying, one thing after the other (`#serial`), but for what only
 *   moves numbers in memory and waits for nothing.
 */
import type { HydrationOutcome } from "../stream/hydration-parts.ts";
import { DestinationGroup, type DestinationHooks, type Welcome } from "./destination-group.ts";
import { DestinationHandover } from "./destination-handover.ts";
import { DestinationLink, type DestinationPort } from "./destination-link.ts";
import type {
  DestinationEvent,
  DestinationExport,
  DestinationMigrationOptions,
  DestinationStatus,
} from "./destination-options.ts";
import { endingError, MigrationError, messageOf, unreachableError } from "./errors.ts";
import type { DestinationRecord } from "./group-records.ts";
import { newId } from "./ids.ts";
import { type FromDestination, type FromSource, MIGRATION_VERSION } from "./messages.ts";
import { PhaseBook } from "./phase-book.ts";
import { DESTINATION_EDGES, type DestinationPhase, shownPhase } from "./phases.ts";
import { Serial } from "./serial.ts";
import { Syncs } from "./syncs.ts";

const TAIL_BYTES_DEFAULT = 64 * 1024 * 1024;
/** The source may just be getting rid of another destination. */
const LINK_REFUSALS_MAX = 4;
const FIRST_PHASE: Readonly<Record<DestinationRecord["state"], DestinationPhase>> = {
  ...{ JOINED: "setup", ACTIVE: "active", DECLINED: "returning", RETURNED: "returning", COMPLETE: "hydrated" },
};

export class DestinationMigration implements AsyncDisposable {
  readonly #options: DestinationMigrationOptions;
  readonly #group: DestinationGroup;
  readonly #link: DestinationLink;
  readonly #phases: PhaseBook<DestinationPhase>;
  readonly #serial = new Serial();
  readonly #syncs = new Syncs();
  readonly #handover: DestinationHandover;
  #trackingId: string;
  /** In a row. */
  #linkRefusals = 0;
  /** What the source was told last of being ready. */
  #told: boolean | undefined;
  /** The source is about to freeze, or is frozen. */
  #preparing = false;
  /** What the source cannot do, of what it was asked for. */
  #refusals = { switch: 0, cancel: 0, reason: "" };
  #closing: Promise<void> | undefined;

  /** Reads the record. An owner's images are open when this resolves. Throws `MigrationError` and what the images throw. */
  static async open(options: DestinationMigrationOptions): Promise<DestinationMigration> {
    let migration: DestinationMigration | undefined;
    const made = (): DestinationMigration => {
      if (migration === undefined) throw new Error("the migration is not made yet");
      return migration;
    };
    const group = await DestinationGroup.open(options, {
      session: (kind, disk, signal) => made().#link.openSession(kind, disk, signal),
      sync: () => made().#syncs.ask(made().#closing === undefined ? made().#link.port : undefined),
      onWrote: () => made().#say({ type: "written", term: group.record.term }),
      onProgress: () => made().#judgeReady(),
      onCompleting: () => made().#say({ type: "complete", term: group.record.term }),
      onHydrated: (outcomes) => made().#onHydrated(outcomes),
    } satisfies DestinationHooks);
    migration = new DestinationMigration(options, group);
    try {
      if (group.owns) await group.resume();
    } catch (error) {
      await migration.close().catch(() => undefined);
      throw error;
    }
    migration.#link.start();
    return migration;
  }

  private constructor(options: DestinationMigrationOptions, group: DestinationGroup) {
    const { env, log, connect, onTunnel } = options;
    this.#options = options;
    this.#group = group;
    this.#trackingId = newId(env);
    const initial = FIRST_PHASE[group.record.state];
    this.#phases = new PhaseBook({ edges: DESTINATION_EDGES, initial, clock: env.clock, log });
    const parts = { clock: env.clock, line: this.#serial, group, phases: this.#phases };
    this.#handover = new DestinationHandover({ ...parts, port: () => this.#link.port });
    this.#link = new DestinationLink({
      ...{ env, log, connect, onTunnel, limits: options.linkLimits ?? {}, ownId: group.record.destinationId },
      // Before it owns anything it may meet the source under another name: that migration is over then.
      linkId: () => (group.owns ? group.record.migrationId : undefined),
      identity: () => ({ trackingId: this.#trackingId, term: group.record.term }),
      onPort: (port) => this.#inLine(async () => this.#join(port)),
      onMessage: (port, message) => this.#onMessage(port, message),
      onPortClosed: () => this.#onPortClosed(),
      onConnected: (connected) => this.#onConnected(connected),
      onRefused: (why) => this.#onLinkRefused(why),
    });
  }

  get phase(): DestinationPhase {
    return this.#phases.current;
  }

  status(): DestinationStatus {
    const { destinationId, migrationId, term } = this.#group.record;
    const { forMs, lastError } = this.#phases;
    return {
      ...{ role: "destination", phase: this.phase, shown: shownPhase(this.phase, this.#link.connected) },
      ...{ forMs, migrationId, destinationId, term, lastError },
      owner: this.#group.owns ? "destination" : "not here",
      ...{ mode: this.#options.mode, paused: this.#group.paused },
      disks: this.#group.disks.map((disk) => disk.status()),
      link: this.#link.link?.status(),
    };
  }

  /** `listener` must not throw. Returns the way to unsubscribe. */
  onEvent(listener: (event: DestinationEvent) => void): () => void {
    return this.#phases.onEvent(listener);
  }

  /** Resolves once it is in one of `phases`. Rejects with `MigrationError("closed")`. */
  whenPhase(...phases: readonly DestinationPhase[]): Promise<DestinationPhase> {
    return this.#phases.when(phases, () => (this.#closing === undefined ? undefined : endingError("destination")));
  }

  /** Resolves once the sizes are known: at the first contact with the source, or at once. Rejects with `MigrationError`. */
  async exports(): Promise<readonly DestinationExport[]> {
    while (this.#group.disks.length === 0) {
      if (this.#closing !== undefined) throw endingError("destination");
      if (this.#phases.is("failed"))
        throw new MigrationError("peer", this.#phases.lastError ?? "it has failed", "see the log");
      if (this.#phases.is("returning", "cancelled")) {
        throw new MigrationError("cancelled", "the disks go back to the source", "begin a new migration");
      }
      await this.#phases.change.next();
    }
    return this.#group.disks.map((disk) => ({
      ...{ name: disk.name, sizeBytes: disk.entry.sizeBytes, guest: disk.guest },
      overlay: () => disk.overlay,
    }));
  }

  /** Asks the source for the disks. Resolves once they are here. Rejects with `MigrationError`. */
  async switchover({ force = false }: { readonly force?: boolean } = {}): Promise<void> {
    const here = (): boolean => this.#phases.is("active", "hydrated", "complete");
    await this.#ask("switch", { type: "please-switch", force }, here);
  }

  /** Asks the source to call it off. Resolves once nothing of it is left here. Rejects with `MigrationError`. */
  async cancel(reason: string): Promise<void> {
    const gone = (): boolean => this.#phases.is("cancelled");
    await this.#ask("cancel", { type: "please-cancel", reason }, gone);
  }

  /** Pulls or hydrates no more, until `resume`. */
  pause(): void {
    this.#group.pause();
  }

  resume(): void {
    this.#group.resumePulling();
  }

  /** Of each disk; undefined: no limit. Throws `RangeError`. */
  setRate(bytesPerSecond: number | undefined): void {
    for (const disk of this.#group.disks) disk.setRate(bytesPerSecond);
  }

  /** Commits and closes everything; nothing changes hands. Idempotent. */
  close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  async #close(): Promise<void> {
    this.#phases.change.notify();
    this.#syncs.giveUp();
    this.#handover.stop();
    await this.#link.close();
    await this.#serial.idle();
    await this.#group.close();
  }

  #say(message: FromDestination): void {
    this.#link.port?.send(message);
  }

  #inLine(job: () => Promise<void>): void {
    this.#later(this.#serial.run(job));
  }

  /** Work that nobody waits for: what goes wrong is in the status. */
  #later(work: Promise<void>): void {
    work.catch((error: unknown) => {
      if (this.#closing === undefined) this.#phases.warn(messageOf(error));
    });
  }

  #join(port: DestinationPort): void {
    if (port !== this.#link.port || this.#phases.is("cancelled", "complete", "failed")) return;
    const { migrationId } = this.#group.record;
    const { verdict, wrote: written } = this.#group;
    port.send({
      ...{ type: "join", version: MIGRATION_VERSION, mode: this.#options.mode, verdict, written },
      disks: this.#options.disks.map(({ name }) => name),
      ...(migrationId !== undefined && { migrationId }),
    });
  }

  #onMessage(port: DestinationPort, message: FromSource): void {
    switch (message.type) {
      case "thawed":
        this.#preparing = false;
        for (const disk of this.#group.disks) disk.go();
        break;
      case "prepare":
        this.#later(this.#prepare(port, message.id));
        break;
      case "heat":
        this.#later(this.#group.learnHeat(message));
        break;
      case "cannot":
        this.#refusals[message.what] += 1;
        this.#refusals.reason = message.reason;
        this.#phases.change.notify();
        break;
      default:
        this.#inLine(() => this.#take(port, message));
    }
  }

  /** In the line: what the source says in the order of its saying. */
  async #take(port: DestinationPort, message: FromSource): Promise<void> {
    switch (message.type) {
      case "welcome":
        return await this.#onWelcome(port, message);
      case "clean":
        return this.#onClean(port, message);
      case "synced":
        return this.#syncs.answered(message.id);
      case "grant":
        return await this.#handover.onGrant(port, message);
      case "recall":
        return await this.#handover.onRecall(port, message.term);
      case "cancelled":
        return await this.#onCancelled(message.reason);
      case "refused":
        return this.#onRefused(message.reason);
      case "released":
        return this.#onReleased(message.term);
      default:
        return;
    }
  }

  #onPortClosed(): void {
    this.#syncs.giveUp();
    this.#preparing = false;
    this.#told = undefined;
    if (this.phase === "ready") this.#phases.advance("precopy");
    this.#phases.change.notify();
  }

  #onConnected(connected: boolean): void {
    if (!connected && this.#options.onSourceLoss === "eio") this.#link.dropDemandSessions();
    this.#phases.tell({ kind: "link", connected });
  }

  /** The link itself was refused: another destination has it, say. */
  #onLinkRefused(why: string): boolean {
    this.#phases.warn(`the source refuses this destination: ${why}`);
    this.#linkRefusals += 1;
    if (!this.#phases.is("setup") || this.#linkRefusals < LINK_REFUSALS_MAX) return true;
    this.#phases.advance("failed");
    return false;
  }

  #onClean(port: DestinationPort, { disk, pages }: Extract<FromSource, { type: "clean" }>): void {
    const found = this.#group.disks.find(({ name }) => name === disk);
    try {
      for (const [page, bits] of pages) found?.learnClean(page, bits);
    } catch (error) {
      port.close();
      throw error;
    }
  }

  async #onWelcome(port: DestinationPort, welcome: Welcome): Promise<void> {
    const { state } = this.#group.record;
    if (port !== this.#link.port || state === "DECLINED" || state === "RETURNED") return;
    this.#trackingId = welcome.trackingId;
    this.#linkRefusals = 0;
    if (state === "JOINED") {
      if (this.#group.disks.length === 0) await this.#setUp(welcome);
      await this.#group.beginRounds(welcome);
      if (this.phase === "setup") this.#phases.advance("precopy");
    }
    this.#group.obeyRate(welcome);
    if (port !== this.#link.port) return;
    this.#link.welcome(welcome.trackingId);
    this.#phases.change.notify();
    this.#judgeReady();
  }

  async #setUp(welcome: Welcome): Promise<void> {
    try {
      await this.#group.setUp(welcome);
    } catch (error) {
      this.#phases.lastError = messageOf(error);
      this.#phases.advance("failed");
      throw error;
    }
  }

  /** Whether a grant would find all that the mode asks for; the source is told when that changes. */
  #judgeReady(): void {
    if (!this.#phases.is("precopy", "ready") || !this.#link.isWelcome) return;
    if (this.#preparing || this.#closing !== undefined) return;
    const { mode, tailBytesMax = TAIL_BYTES_DEFAULT } = this.#options;
    // What was good enough once is not taken back at the next write.
    const enough = this.#told === true ? 2 * tailBytesMax : tailBytesMax;
    const ready = mode !== "precopy" || this.#group.restBytes <= enough;
    this.#phases.advance(ready ? "ready" : "precopy");
    if (this.#told === ready) return;
    this.#told = ready;
    this.#say({ type: "ready", ready });
  }

  async #prepare(port: DestinationPort, id: number): Promise<void> {
    this.#preparing = true;
    await Promise.all(this.#group.disks.map((disk) => disk.hold()));
    port.send({ type: "prepared", id });
  }

  #onHydrated(outcomes: readonly HydrationOutcome[]): void {
    for (const outcome of outcomes) {
      if (outcome.state === "failed") this.#phases.warn(`hydration has failed: ${messageOf(outcome.error)}`);
    }
    if (!outcomes.every(({ state }) => state === "complete")) return;
    const allowed = this.#options.mayComplete?.() ?? Promise.resolve();
    this.#later(allowed.then(() => this.#serial.run(() => this.#handover.onHydrated())));
  }

  /** The source has its disks. */
  async #onCancelled(reason: string): Promise<void> {
    if (this.#group.owns) return this.#phases.warn(`the source says that it is over (${reason}); the disks are here`);
    await this.#group.remove();
    this.#phases.lastError = reason;
    this.#phases.advance("cancelled");
    this.#later(this.#link.close());
  }

  #onRefused(reason: string): void {
    this.#phases.warn(`the source refuses this destination: ${reason}`);
    if (this.#group.owns || this.#phases.is("returning", "cancelled", "failed")) return;
    this.#phases.advance("failed");
    this.#later(this.#link.close());
  }

  #onReleased(term: number): void {
    if (this.#group.record.state !== "COMPLETE" || term !== this.#group.record.term) return;
    this.#phases.advance("complete");
    this.#later(this.#hangUp());
  }

  /** The disks do not need the link any more. Somebody else's stream, the guest's memory say, may still be on its way. */
  async #hangUp(): Promise<void> {
    await this.#options.tunnelsIdle?.();
    await this.#link.close();
  }

  /** Asks the source, and waits until it is so, or cannot be. */
  async #ask(what: "switch" | "cancel", question: FromDestination, done: () => boolean): Promise<void> {
    const { port } = this.#link;
    const lost = unreachableError("source", "ask again when it can");
    if (done()) return;
    if (port === undefined || !this.#link.connected) throw lost;
    const before = this.#refusals[what];
    port.send(question);
    while (!done()) {
      if (this.#refusals[what] !== before) throw new MigrationError("peer", this.#refusals.reason, "see its status");
      if (this.#closing !== undefined) throw endingError("destination");
      if (this.#phases.is("cancelled", "failed")) {
        throw new MigrationError("cancelled", "it was called off", "begin anew");
      }
      if (port !== this.#link.port) throw lost;
      await this.#phases.change.next();
    }
  }
}
