/**
 * The source's side of a migration: it has the disks, serves its guest, lets a destination pull, and gives the disks away.
 *
 * Invariants
 * - Guests' changes reach the disks only while the gate is open, and the gate is open only while this host is the owner:
 *   it is held before the fences are written, and opened again only if no grant was sent, or after the destination has
 *   durably let go of the disks and their return is recorded here.
 * - A grant is sent when the fences of all disks are durable, and not before.
 * - Whatever changes records runs in one line (`#serial`): a switchover, a return and a release never overlap.
 * - What an earlier channel, session or round has said counts for nothing: `join` begins anew.
 */
import { BlockError } from "../block/error.ts";
import type { Channel } from "../link/channel.ts";
import {
  cancelledError,
  endingError,
  goneError,
  keptError,
  MigrationError,
  messageOf,
  stillThereError,
  unreachableError,
} from "./errors.ts";
import { answerJoin, type Join } from "./join.ts";
import type { FromDestination, Mode } from "./messages.ts";
import { PhaseBook } from "./phase-book.ts";
import { SOURCE_EDGES, type SourcePhase } from "./phases.ts";
import { Serial } from "./serial.ts";
import type { SourceDisk } from "./source-disk.ts";
import { SourceGroup } from "./source-group.ts";
import { SourceLink, type SourcePort, TUNNEL_PREFIX } from "./source-link.ts";
import {
  SOURCE_LIMITS,
  type SourceEvent,
  type SourceExport,
  type SourceLimits,
  type SourceMigrationOptions,
  type SourceStatus,
} from "./source-options.ts";
import { SourceRecords } from "./source-records.ts";
import { sourceStatus } from "./source-status.ts";
import { grant, type Switching, type SwitchoverOptions, sendClean, switchOver } from "./switchover.ts";
import type { WriteGate } from "./write-gate.ts";

export class SourceMigration implements AsyncDisposable, Switching {
  readonly exports: readonly SourceExport[];
  readonly limits: SourceLimits;
  readonly disks: readonly SourceDisk[];
  readonly gate: WriteGate;
  readonly link: SourceLink;
  /** As `Switching` has it. */
  syncMs = 0;
  readonly phases: PhaseBook<SourcePhase>;
  readonly records: SourceRecords;
  readonly #options: SourceMigrationOptions;
  readonly #group: SourceGroup;
  readonly #serial = new Serial();
  #mode: Mode | undefined;
  #wrote = false;
  /** Raised whenever the disks were in question and are this host's again. */
  #attempt = 0;
  #callOff: string | undefined;
  #prepareId = 0;
  #prepared = -1;
  /** The destination's last refusal to give the disks back. */
  #kept: { readonly reason: string } | undefined;
  #closing: Promise<void> | undefined;

  /** Reads the records, and settles what a crash has left half-done. Throws `MigrationError`. */
  static async open(options: SourceMigrationOptions): Promise<SourceMigration> {
    return new SourceMigration(options, await SourceGroup.open(options));
  }

  private constructor(options: SourceMigrationOptions, group: SourceGroup) {
    const { env, log } = options;
    this.#options = options;
    this.#group = group;
    this.limits = { ...SOURCE_LIMITS, ...options.limits };
    this.disks = group.disks;
    this.gate = group.gate;
    const { phase: initial } = group.standing;
    this.phases = new PhaseBook({ edges: SOURCE_EDGES, initial, clock: env.clock, log });
    const onFailure = (error: unknown): void => this.phases.warn(`${messageOf(error)}; it is tried again`);
    this.records = new SourceRecords({ clock: env.clock, line: this.#serial, group, onFailure });
    if (initial === "granted") this.gate.hold();
    if (initial === "released") this.gate.refuse(goneError());
    this.exports = this.disks.map(({ name, guest, plain }) => ({ name, guest, plain }));
    this.link = new SourceLink(
      {
        ...{ env, log, limits: options.linkLimits ?? {}, ownId: group.sourceId, disks: group.disks },
        identity: () => ({ trackingId: group.trackingId, term: group.term }),
        onTunnel: options.onTunnel,
        onMessage: (port, message) => this.#onMessage(port, message),
        onPortClosed: () => this.#onPortClosed(),
        onConnected: (connected) => this.phases.tell({ kind: "link", connected }),
      },
      group.migrationId,
      group.destinationId,
    );
  }

  get env(): SourceMigrationOptions["env"] {
    return this.#options.env;
  }

  get phase(): SourcePhase {
    return this.phases.current;
  }

  get trackingId(): string {
    return this.#group.trackingId;
  }

  get term(): number {
    return this.#group.term;
  }

  /** Give to the NBD server of the link port. */
  get upgrade(): SourceLink["upgrade"] {
    return this.link.upgrade;
  }

  get prepared(): number {
    return this.#prepared;
  }

  nextPrepareId(): number {
    this.#prepareId += 1;
    return this.#prepareId;
  }

  get callOff(): string | undefined {
    return this.#closing === undefined ? this.#callOff : "the source is ending";
  }

  status(): SourceStatus {
    const { phases, link } = this;
    return sourceStatus({ phases, group: this.#group, link, destinationWrote: this.#wrote, mode: this.#mode });
  }

  /** `listener` must not throw. Returns the way to unsubscribe. */
  onEvent(listener: (event: SourceEvent) => void): () => void {
    return this.phases.onEvent(listener);
  }

  /** Resolves once it is in one of `phases`. Rejects with `MigrationError("closed")`. */
  whenPhase(...phases: readonly SourcePhase[]): Promise<SourcePhase> {
    return this.phases.when(phases, () => (this.#closing === undefined ? undefined : endingError("source")));
  }

  /** Resolves once the destination is the owner. What it rejects with says whether anything was given away. */
  async switchover(options: SwitchoverOptions = {}): Promise<void> {
    if (this.phases.is("serving", "released")) return;
    const attempt = this.#attempt;
    if (this.phase !== "granted") await this.#serial.run(() => switchOver(this, options));
    while (!this.phases.is("serving", "released")) {
      if (this.#closing !== undefined) throw endingError("source");
      if (attempt !== this.#attempt) throw cancelledError(this.phases.lastError ?? "it was called off");
      await this.phases.change.next();
    }
  }

  /**
   * Before the disks are given away: calls it off. Afterwards: asks the destination to give them back. Resolves when they
   * are this host's, and whoever comes next is a new destination. Rejects with `MigrationError`.
   */
  async cancel(reason: string): Promise<void> {
    this.#callOff = reason;
    this.phases.change.notify();
    const attempt = this.#attempt;
    const { notTakenBack: before } = this.records;
    const asked = await this.#serial.run(() => this.#recall(reason)).finally(() => (this.#callOff = undefined));
    while (asked !== undefined && attempt === this.#attempt) {
      if (this.#closing !== undefined) throw endingError("source");
      if (this.#kept !== undefined) throw keptError(this.#kept.reason, this.#wrote);
      const { notTakenBack } = this.records;
      if (notTakenBack !== undefined && notTakenBack !== before) throw notTakenBack;
      // Once it has let go of them it hangs up.
      if (this.link.port !== asked && this.phases.is("granted", "serving"))
        throw unreachableError("destination", "ask again when it is back, or reclaim if it is gone for good");
      await this.phases.change.next();
    }
  }

  /** Takes the disks back without asking. Only where the destination cannot be running any more: never while it answers. */
  reclaim(): Promise<void> {
    return this.#serial.run(async () => {
      if (!this.phases.is("granted", "serving", "released")) {
        throw new MigrationError("phase", "there is nothing to reclaim: the disks are here", "go on using them");
      }
      if (this.link.connected) throw stillThereError();
      await this.#takeBack("the disks were reclaimed");
    });
  }

  /** A channel of its own to the destination, for somebody else's stream. Throws `LinkError`. */
  openTunnel(name: string): Channel {
    return this.link.link.open("tunnel", `${TUNNEL_PREFIX}${name}`);
  }

  /** Ends the process's part: nothing is given away or taken back. Changes that are held fail. Idempotent. */
  close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  async #close(): Promise<void> {
    this.phases.change.notify();
    this.records.stop();
    this.gate.refuse(new BlockError("shutting-down", "the source is ending"));
    await this.#serial.idle();
    await this.link.close();
    await this.#group.close();
  }

  // What follows is for the switchover (`switchover.ts`) too.

  openGate(): void {
    if (this.#closing === undefined) this.gate.open();
  }

  #onPortClosed(): void {
    if (this.phase === "ready" && this.link.port === undefined) this.phases.advance("precopy");
    this.phases.change.notify();
  }

  #onMessage(port: SourcePort, message: FromDestination): void {
    const { onSwitchRequest } = this.#options;
    switch (message.type) {
      case "join":
        this.#inLine(() => this.#onJoin(port, message));
        break;
      case "ready":
        if (this.phases.is("precopy", "ready")) this.phases.advance(message.ready ? "ready" : "precopy");
        break;
      case "sync":
        this.#later(this.#answerSync(port, message.id));
        break;
      case "prepared":
        // An answer to an earlier question may come late, even behind that to the last one.
        if (message.id === this.#prepareId) this.#prepared = message.id;
        this.phases.change.notify();
        break;
      case "active":
        this.syncMs += message.syncMs ?? 0;
        this.#onActive(message.term);
        break;
      case "written":
        this.#onWritten();
        break;
      case "declined":
      case "returned":
        this.#inLine(() => this.#onLetGo(message.term));
        break;
      case "kept":
        this.#kept = { reason: message.reason };
        this.phases.change.notify();
        break;
      case "complete":
        this.#inLine(() => this.#release(message.term));
        break;
      case "please-switch":
        this.#later(this.#asked(port, "switch", onSwitchRequest?.(message.force) ?? this.switchover()));
        break;
      case "please-cancel":
        this.#later(this.#asked(port, "cancel", this.cancel(message.reason)));
        break;
    }
  }

  #inLine(job: () => Promise<void>): void {
    this.#later(this.#serial.run(job));
  }

  /** Work that nobody waits for: what goes wrong is in the status. */
  #later(work: Promise<void>): void {
    work.catch((error: unknown) => {
      if (this.#closing === undefined) this.phases.warn(messageOf(error));
    });
  }

  async #asked(port: SourcePort, what: "switch" | "cancel", work: Promise<void>): Promise<void> {
    try {
      await work;
    } catch (error) {
      port.send({ type: "cannot", what, reason: messageOf(error) });
    }
  }

  async #answerSync(port: SourcePort, id: number): Promise<void> {
    await sendClean(this, port);
    port.send({ type: "synced", id });
  }

  async #onJoin(port: SourcePort, join: Join): Promise<void> {
    if (port !== this.link.port || this.#closing !== undefined) return;
    const disks = this.disks.map(({ name }) => name);
    const known = { phase: this.phase, migrationId: this.#group.migrationId, term: this.term, disks };
    const answer = answerJoin(join, known);
    if (answer.kind === "refuse") port.send({ type: "refused", reason: answer.reason });
    else if (answer.kind === "over") port.send({ type: "cancelled", reason: answer.reason });
    else {
      this.#mode = join.mode;
      await this.#letIn(port, join, answer.kind);
    }
  }

  async #letIn(port: SourcePort, { written }: Join, how: "begin" | "grant" | "serve" | "release" | "take-back") {
    if (how === "release") return await this.#release(this.term);
    if (how === "take-back") return await this.#onLetGo(this.term);
    if (how === "begin") this.#group.destinationId = this.link.link.status().peerId;
    port.send(this.#group.beginRound());
    if (how === "begin") this.phases.advance("precopy");
    else if (how === "grant") await grant(this, port);
    else {
      this.#onActive(this.term);
      if (written) this.#onWritten();
    }
  }

  #onActive(term: number): void {
    if (term !== this.term || !this.phases.is("granted", "serving")) return;
    this.phases.advance("serving");
    for (const heat of this.#group.heat()) this.link.port?.send(heat);
  }

  #onWritten(): void {
    if (!this.phases.is("granted", "serving") || this.#wrote) return;
    this.#wrote = true;
    this.gate.refuse(goneError());
    this.phases.change.notify();
  }

  /** The destination has durably declined the disks (at our term) or given them back (at the next). */
  async #onLetGo(term: number): Promise<void> {
    await this.records.takeBack(async () => {
      if (!this.phases.is("granted", "serving") || (term !== this.term && term !== this.term + 1)) return;
      await this.#takeBack(this.#callOff ?? "the destination has let go of the disks");
    });
  }

  async #release(term: number): Promise<void> {
    await this.records.release(async () => {
      if (!this.phases.is("granted", "serving", "released") || term !== this.term) return;
      if (this.phase !== "released") await this.records.write("RELEASED", term);
      this.gate.refuse(goneError());
      this.phases.advance("released");
      this.#group.endSessions();
      this.link.port?.send({ type: "released", term });
    });
  }

  /** In the line. Resolves to the port on which the disks were asked for; undefined: they are here. */
  async #recall(reason: string): Promise<SourcePort | undefined> {
    if (this.phase === "released") throw new MigrationError("phase", "the destination has everything", "use it there");
    if (!this.phases.is("granted", "serving")) {
      await this.#startOver(reason);
      return undefined;
    }
    const written = "the destination's guest has written to its disks";
    if (this.#wrote) throw new MigrationError("written", written, "go on over there");
    const { port } = this.link;
    if (port === undefined || !this.link.connected)
      throw unreachableError("destination", "wait for it, or reclaim if it is gone for good");
    this.#kept = undefined;
    port.send({ type: "recall", term: this.term });
    return port;
  }

  /** Nobody else may write to the disks, and nobody will: they are this host's, at a new term. */
  async #takeBack(reason: string): Promise<void> {
    await this.records.write("OWNER", this.term + 1);
    await this.#startOver(reason);
  }

  /** The disks are this host's: goes on as before, and waits for a new destination. */
  async #startOver(reason: string): Promise<void> {
    this.phases.advance("cancelled");
    this.#wrote = false;
    this.phases.lastError = reason;
    this.openGate();
    this.link.port?.send({ type: "cancelled", reason });
    this.#mode = undefined;
    this.phases.advance("setup");
    await this.#group.beginAnew((message) => this.phases.warn(message));
    await this.link.renew(this.#group.migrationId);
    this.#attempt += 1;
    this.phases.change.notify();
  }
}
