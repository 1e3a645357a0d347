/** The disks of a source, as one: who owns them, in which migration, and in which round of pulling. */
import type { Env } from "../env/env.ts";
import { messageOf } from "./errors.ts";
import { readSource, writeSource } from "./group-records.ts";
import { newId } from "./ids.ts";
import { type FromSource, MIGRATION_VERSION } from "./messages.ts";
import { DISKS_MAX, DiskName } from "./owner-record.ts";
import { SourceDisk } from "./source-disk.ts";
import { SOURCE_LIMITS, type SourceLimits, type SourceMigrationOptions } from "./source-options.ts";
import { findStanding, type OwnerChange, type Standing, writeOwners } from "./source-owners.ts";
import { WriteGate } from "./write-gate.ts";

export class SourceGroup {
  readonly disks: readonly SourceDisk[];
  /** Of all disks: they are held and let go together. */
  readonly gate: WriteGate;
  /** The same after a restart. */
  readonly sourceId: string;
  /** What the records said at the start. */
  readonly standing: Standing;
  readonly #env: Env;
  readonly #options: SourceMigrationOptions;
  #migrationId: string;
  #trackingId: string;
  #destinationId: string | undefined;
  #term: number;

  /** Reads the records, and settles what a crash has left half-done. Throws `MigrationError`. */
  static async open(options: SourceMigrationOptions): Promise<SourceGroup> {
    const { env, disks, stateDirectory } = options;
    const names = disks.map(({ name }) => name);
    const good = names.every((name) => DiskName.safeParse(name).success) && new Set(names).size === names.length;
    if (!good || names.length === 0 || names.length > DISKS_MAX) throw new RangeError("bad names of disks");
    const known = await readSource(env, stateDirectory);
    const { sourceId, migrationId } = known ?? { sourceId: newId(env), migrationId: newId(env) };
    const standing = await findStanding(env, disks, { writtenBy: sourceId, migrationId, stateDirectory });
    const id = standing.given?.migrationId ?? migrationId;
    await writeSource(env, stateDirectory, { version: 1, sourceId, migrationId: id });
    return new SourceGroup(options, standing, { sourceId, migrationId: id });
  }

  private constructor(
    options: SourceMigrationOptions,
    standing: Standing,
    { sourceId, migrationId }: { readonly sourceId: string; readonly migrationId: string },
  ) {
    const { env, log, limits } = options;
    this.#env = env;
    this.#options = options;
    this.standing = standing;
    this.sourceId = sourceId;
    this.#migrationId = migrationId;
    this.#trackingId = newId(env);
    this.#destinationId = standing.given?.destinationId;
    this.#term = standing.term;
    this.gate = new WriteGate(env.chaos);
    const { grainBytes, heatRegionBytes }: SourceLimits = { ...SOURCE_LIMITS, ...limits };
    const parts = { clock: env.clock, chaos: env.chaos, log, gate: this.gate, grainBytes, heatRegionBytes };
    this.disks = options.disks.map((disk) => new SourceDisk(disk, parts));
  }

  get migrationId(): string {
    return this.#migrationId;
  }

  get trackingId(): string {
    return this.#trackingId;
  }

  /** Who may pull, or has the disks. */
  get destinationId(): string | undefined {
    return this.#destinationId;
  }

  set destinationId(id: string | undefined) {
    this.#destinationId = id;
  }

  get term(): number {
    return this.#term;
  }

  /**
   * Records who owns the disks, durably for all of them; then the term is this one. Throws `MigrationError("io")`: then any
   * of them may have been changed, and the same or a higher term is to be recorded for all.
   */
  async record(state: OwnerChange["state"], term: number): Promise<void> {
    const change = { state, term, writtenBy: this.sourceId, migrationId: this.#migrationId };
    const { stateDirectory } = this.#options;
    await writeOwners(this.#env, this.disks, { ...change, stateDirectory, destinationId: this.#destinationId });
    this.#term = term;
  }

  /** A new tracking id: whatever was pulled before counts for nothing. Returns what the destination is to be told. */
  beginRound(): FromSource {
    this.#trackingId = newId(this.#env);
    for (const disk of this.disks) disk.beginTracking();
    return {
      ...{ type: "welcome", version: MIGRATION_VERSION, migrationId: this.#migrationId, trackingId: this.#trackingId },
      ...(this.#options.late === true && { late: true }),
      ...(this.#options.rate !== undefined && { rate: this.#options.rate }),
      disks: this.disks.map(({ name, sizeBytes, clean }) => ({ name, sizeBytes, grainBytes: clean.grainBytes })),
    };
  }

  /** Another migration begins: what the last destination knows is over. */
  async beginAnew(onWarning: (message: string) => void): Promise<void> {
    this.beginRound();
    this.#migrationId = newId(this.#env);
    this.#destinationId = undefined;
    const { stateDirectory } = this.#options;
    const names = { version: 1, sourceId: this.sourceId, migrationId: this.#migrationId } as const;
    // Without it a source that is restarted goes on under the old name, which does no harm.
    await writeSource(this.#env, stateDirectory, names).catch((error: unknown) => onWarning(messageOf(error)));
  }

  endSessions(): void {
    for (const disk of this.disks) disk.endSessions();
  }

  /** What guests used most, by disk. */
  heat(): FromSource[] {
    return this.disks.flatMap((disk) => disk.heat() ?? []);
  }

  async close(): Promise<void> {
    await Promise.all(this.disks.map((disk) => disk.close()));
  }
}
