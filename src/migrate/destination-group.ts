/**
 * The disks of a destination, as one: the record that says whose they are, and what each change of it takes. A change is
 * durable when its promise resolves, and not before; who tells the source waits for that.
 */
import { blockErrorFrom } from "../cor/errors.ts";
import { CLUSTER_BYTES_DEFAULT } from "../cor/overlay-files.ts";
import type { Timer } from "../env/clock.ts";
import type { Env } from "../env/env.ts";
import type { HydrationOutcome } from "../stream/hydration-parts.ts";
import type { SourceSession } from "../stream/source-session.ts";
import { DestinationDisk } from "./destination-disk.ts";
import {
  all,
  claimPlaces,
  filesOf,
  findRecord,
  removeAll,
  removeFiles,
  writeDestinationOwners,
} from "./destination-files.ts";
import type { DestinationMigrationOptions } from "./destination-options.ts";
import { MigrationError } from "./errors.ts";
import {
  type DestinationDiskEntry,
  type DestinationRecord,
  noteUnwritten,
  noteWritten,
  unwrittenPath,
  writeDestination,
} from "./group-records.ts";
import { newId } from "./ids.ts";
import type { FromSource, Verdict } from "./messages.ts";

export type Welcome = Extract<FromSource, { type: "welcome" }>;
export type Grant = Extract<FromSource, { type: "grant" }>;

/** When disks have just been taken, whatever is not for their guest waits so long. */
const GUEST_FIRST_MS = 50;

export interface DestinationHooks {
  /** Opens a session over the link, once the source has welcomed us. */
  readonly session: (kind: "read" | "pull", disk: string, signal: AbortSignal) => Promise<SourceSession>;
  readonly sync: () => Promise<boolean>;
  /** A guest's first change is let through. */
  readonly onWrote: () => void;
  readonly onProgress: () => void;
  /** Everything is being made durable: the mutant's moment. */
  readonly onCompleting: () => void;
  readonly onHydrated: (outcomes: readonly HydrationOutcome[]) => void;
}

export class DestinationGroup {
  readonly #env: Env;
  readonly #options: DestinationMigrationOptions;
  readonly #hooks: DestinationHooks;
  #record: DestinationRecord;
  /** Of a guest's first change. */
  #noting: Promise<void> | undefined;
  #disks: readonly DestinationDisk[] = [];
  #paused = false;
  readonly #leisure = Promise.withResolvers<void>();
  /** Until then, once it is known. */
  #guestFirst: Timer | undefined;
  /** The source cannot be read before it has given the disks away. */
  #late = false;

  static async open(options: DestinationMigrationOptions, hooks: DestinationHooks): Promise<DestinationGroup> {
    return new DestinationGroup(options, hooks, await findRecord(options.env, options));
  }

  private constructor(options: DestinationMigrationOptions, hooks: DestinationHooks, record: DestinationRecord) {
    this.#env = options.env;
    this.#options = options;
    this.#hooks = hooks;
    this.#record = record;
  }

  get record(): DestinationRecord {
    return this.#record;
  }

  /** This host is the owner. */
  get owns(): boolean {
    return this.#record.state === "ACTIVE" || this.#record.state === "COMPLETE";
  }

  get verdict(): Verdict {
    const { state, term } = this.#record;
    return state === "JOINED" ? { state } : { state, term };
  }

  /** None before the source was met for the first time. */
  get disks(): readonly DestinationDisk[] {
    return this.#disks;
  }

  get paused(): boolean {
    return this.#paused;
  }

  /** A guest of any disk has changed it, in an earlier life perhaps, or is about to. */
  get wrote(): boolean {
    return this.#disks.some((disk) => disk.guest.wrote);
  }

  /** What could be pulled before the disks are here, and was not. */
  get restBytes(): number {
    if (this.#late) return 0;
    return this.#disks.reduce((sum, disk) => sum + disk.restBytes, 0);
  }

  /** Resolves when the guest of disks that were just taken has had its start. */
  get leisure(): Promise<void> {
    return this.#leisure.promise;
  }

  /** After a restart as the owner. */
  async resume(): Promise<void> {
    this.#disks = this.#record.disks.map((entry) => this.#newDisk(entry));
    for (const disk of this.#disks) await disk.reopen();
    await this.writeOwners();
    const { files } = this.#env;
    this.goLive(!(await files.exists(unwrittenPath(this.#options.stateDirectory))));
  }

  /** Makes the images: the sizes are known now. Throws `MigrationError` and what the images throw. */
  async setUp({ disks, migrationId }: Welcome): Promise<void> {
    const entries = this.#options.disks.map(({ name, image, clusterBytes = CLUSTER_BYTES_DEFAULT }) => {
      const sizeBytes = disks.find((disk) => disk.name === name)?.sizeBytes;
      if (sizeBytes === undefined)
        throw new MigrationError("peer", `the source has no disk ${name}`, "check the names");
      return { name, image, clusterBytes, sizeBytes, uuid: newId(this.#env) };
    });
    const record = { ...this.#record, migrationId, disks: entries };
    await claimPlaces(this.#env, this.#options, record);
    this.#record = record;
    await removeFiles(
      this.#env,
      entries.flatMap((entry) => filesOf(this.#options, entry)),
    );
    const made = entries.map((entry) => this.#newDisk(entry));
    await all(made.map((disk) => disk.make()));
    this.#disks = made;
  }

  /** Whatever was pulled before counts for nothing. */
  async beginRounds({ disks, trackingId, migrationId, late = false, rate }: Welcome): Promise<void> {
    const pulls = this.#options.mode !== "postcopy" && !late;
    this.#late = late;
    for (const disk of this.#disks) {
      const offered = disks.find(({ name }) => name === disk.name);
      if (offered?.sizeBytes !== disk.entry.sizeBytes) {
        throw new MigrationError("peer", `the size of ${disk.name} has changed`, "cancel, and begin anew");
      }
      disk.setSourceRate(rate);
      await disk.beginRound(trackingId, offered.grainBytes, pulls);
    }
    if (this.#record.migrationId !== migrationId) await this.#write({ migrationId });
  }

  /** What the source allows, whoever owns the disks. */
  obeyRate({ rate }: Welcome): void {
    for (const disk of this.#disks) disk.setSourceRate(rate);
  }

  /**
   * Everything up to the instant in which this host is the owner. Resolves to the disks of which nothing that was pulled
   * counts, and to how long it took to make durable what has to be. When it rejects, that instant may have come or not: only
   * `decline` settles it.
   */
  async takeOver({ disks, trackingId, term }: Grant): Promise<{ fresh: readonly string[]; syncMs: number }> {
    const { clock } = this.#env;
    const fresh: string[] = [];
    const startMs = clock.nowMs();
    const published = this.#disks.map(async (disk) => {
      const granted = disks.find(({ name }) => name === disk.name);
      if (granted === undefined) throw new MigrationError("peer", `${disk.name} was not granted`, "begin anew");
      if (!(await disk.publish({ ...granted, trackingId, term }))) fresh.push(disk.name);
    });
    await all([...published, noteUnwritten(this.#env, this.#options.stateDirectory)]);
    const publishedMs = clock.nowMs();
    await all(this.#disks.map((disk) => disk.openPublished()));
    const openMs = clock.nowMs();
    await this.#write({ state: "ACTIVE", term });
    return { fresh, syncMs: publishedMs - startMs + clock.nowMs() - openMs };
  }

  /** Hydration follows it from its next unit on. Rejects with `MigrationProtocolError`; then the order stays as it is. */
  async learnHeat(heat: Extract<FromSource, { type: "heat" }>): Promise<void> {
    this.#disks.find(({ name }) => name === heat.disk)?.learnHeat(heat);
  }

  async decline(term: number): Promise<void> {
    // No guest comes: what waited for it, the end of old sessions too, waits for nothing.
    this.#leisure.resolve();
    for (const disk of this.#disks) disk.endBackground();
    await this.#write({ state: "DECLINED", term });
  }

  /** Nobody's change is accepted any more, in this very turn; then that is written down. */
  async giveBack(term: number, early: () => void): Promise<void> {
    for (const disk of this.#disks) disk.guest.shut();
    await Promise.all(this.#disks.map((disk) => disk.close()));
    if (this.#env.chaos.on("migrate/owner-before-returned")) early();
    await this.#write({ state: "RETURNED", term });
  }

  /** Guests may use the disks, and the rest is fetched. */
  goLive(wrote: boolean): void {
    for (const disk of this.#disks) disk.activate(wrote);
    this.#guestFirst = this.#env.clock.setTimer(GUEST_FIRST_MS, this.#leisure.resolve);
    if (this.#record.state === "COMPLETE") return;
    const pulls = this.#disks.flatMap(({ pull }) => pull ?? []);
    void Promise.all(pulls.map(({ hydrator }) => hydrator.whenDone())).then((all) => this.#hooks.onHydrated(all));
    if (!this.#env.chaos.on("migrate/release-before-complete")) return;
    pulls[0]?.hydrator.onState((state) => state === "completing" && this.#hooks.onCompleting());
  }

  /** Everything is here, and the maps say so. The source is not needed any more. */
  async complete(): Promise<void> {
    await this.#write({ state: "COMPLETE" });
    for (const disk of this.#disks) disk.letSourceGo();
  }

  /** Beside the images: for whoever does not know the state directory. */
  async writeOwners(): Promise<void> {
    const state = this.#record.state === "COMPLETE" ? "OWNER" : "ACTIVE";
    await writeDestinationOwners(this.#env, this.#options, this.#record, state);
  }

  /** Nothing of the migration is left. */
  async remove(): Promise<void> {
    await this.close();
    await removeAll(this.#env, this.#options, this.#record);
  }

  pause(): void {
    this.#paused = true;
    for (const disk of this.#disks) disk.pause();
  }

  resumePulling(): void {
    this.#paused = false;
    for (const disk of this.#disks) disk.resume();
  }

  async close(): Promise<void> {
    const disks = this.#disks;
    this.#guestFirst?.cancel();
    this.#leisure.resolve();
    await Promise.all(disks.map((disk) => disk.close()));
    await this.#noting?.catch(() => undefined);
  }

  /** Before a guest's first change is let through. Complete disks are not given back: nobody will ask. */
  async #noteWrite(): Promise<void> {
    const unasked = this.#record.state === "COMPLETE" || this.#env.chaos.on("migrate/first-write-not-noted");
    const noted = (): Promise<void> => noteWritten(this.#env, this.#options.stateDirectory);
    // One that has failed is not tried again: what a failed sync has left is not known.
    this.#noting ??= (unasked ? Promise.resolve() : noted()).then(
      () => this.#hooks.onWrote(),
      (error: unknown) => {
        throw blockErrorFrom(error);
      },
    );
    await this.#noting;
  }

  async #write(change: Partial<DestinationRecord>): Promise<void> {
    const next = { ...this.#record, ...change };
    await writeDestination(this.#env, this.#options.stateDirectory, next);
    this.#record = next;
  }

  #newDisk(entry: DestinationDiskEntry): DestinationDisk {
    const { env, bootId, earlyReads, onSourceLoss, lossDeadlineMs, rate, disks, log } = this.#options;
    const options = disks.find(({ name }) => name === entry.name);
    if (options === undefined) throw new Error(`there is no disk ${entry.name}`);
    const { session: connect, sync, onProgress } = this.#hooks;
    const disk = new DestinationDisk({
      ...{ env, options, entry, bootId, earlyReads, onSourceLoss, lossDeadlineMs, rate, log },
      ...{ connect, sync, onProgress, noteWrite: () => this.#noteWrite(), leisure: this.leisure },
    });
    if (this.#paused) disk.pause();
    return disk;
  }
}
