/** What a source writes down beside its images, and what of it is tried again until it is durable. */
import type { Clock } from "../env/clock.ts";
import { type MigrationError, notTakenBackError } from "./errors.ts";
import { Retries } from "./retries.ts";
import type { Serial } from "./serial.ts";
import type { SourceGroup } from "./source-group.ts";

export interface SourceRecordsOptions {
  readonly clock: Clock;
  readonly line: Serial;
  readonly group: SourceGroup;
  /** As `RetriesOptions`. */
  readonly onFailure: (error: unknown) => void;
}

/** All of it in the source's line. */
export class SourceRecords {
  readonly #group: SourceGroup;
  readonly #retries: Retries;
  /** Fences may be there that were never meant: to be recorded over, at this term. */
  #unsettled: number | undefined;
  #notTakenBack: MigrationError | undefined;

  constructor(options: SourceRecordsOptions) {
    this.#group = options.group;
    this.#retries = new Retries(options);
  }

  /** Why the disks, which the destination has let go of, are not this host's yet: of each attempt its own. */
  get notTakenBack(): MigrationError | undefined {
    return this.#notTakenBack;
  }

  /** Durable for all disks when resolved; then the term is the source's. Throws `MigrationError`. */
  async write(state: "OWNER" | "FENCED" | "RELEASED", term: number): Promise<void> {
    await this.#group.record(state, term);
  }

  /**
   * Records that this host is the owner, over fences that were never meant, at this term; absent: if an earlier call has not
   * come to it. Resolves to whether that is durable; if not, it is tried again by itself. Never rejects.
   */
  settle(term = this.#unsettled): Promise<boolean> {
    this.#unsettled = term;
    return this.#retries.attempt("settle", async () => {
      if (this.#unsettled === undefined) return;
      await this.write("OWNER", this.#unsettled);
      this.#unsettled = undefined;
    });
  }

  /** `job` does nothing once it is not wanted any more. Until it has succeeded, it comes again. Never rejects. */
  async takeBack(job: () => Promise<void>): Promise<void> {
    await this.#retries.attempt("take back", async () => {
      try {
        await job();
      } catch (error) {
        this.#notTakenBack = notTakenBackError(error);
        throw error;
      }
    });
  }

  /** As `takeBack`. */
  async release(job: () => Promise<void>): Promise<void> {
    await this.#retries.attempt("release", job);
  }

  /** Nothing is tried again. */
  stop(): void {
    this.#retries.stop();
  }
}
