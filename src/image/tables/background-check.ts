/**
 * The check of an image that was not closed cleanly, beside the guest's work. It holds the gate until it has ended: reads
 * and writes in place go on meanwhile, allocating writes wait, and so the tables stand still while they are walked.
 *
 * Why an allocation must wait: an entry that points behind the end of the file is harmless until the file grows; then it
 * would point into what was allocated for somebody else.
 */
import { BlockError } from "../../block/error.ts";
import type { CheckProgress, CheckReport } from "./check-report.ts";
import { ImageCorruptError } from "./corrupt-error.ts";
import type { Gate } from "./gate.ts";
import type { ImageFile } from "./image-file.ts";

/** The check was told to stop. */
export class CheckStoppedError extends Error {
  override readonly name = "CheckStoppedError";
}

/** What a check looks at now and then, and tells. */
export interface CheckHooks {
  /** True: reject with `CheckStoppedError`. */
  readonly stopped: () => boolean;
  /** How many of the disk's clusters have been looked at. */
  readonly onProgress: (clusters: number) => void;
}

export interface BackgroundCheckParts {
  readonly file: ImageFile;
  readonly gate: Gate;
  /** Of the disk. */
  readonly clustersTotal: number;
  /** Walks the tables and repairs what can be repaired; rejects with `BlockError` when it could not. */
  readonly check: (hooks: CheckHooks) => Promise<CheckReport>;
  /** Where the tables begin, for messages. */
  readonly table: { readonly field: string; readonly at: number };
  /** The tables are right, durably, and the gate is open. */
  readonly onClean: () => void;
  /** Mutants. */
  readonly chaos: { readonly noBarrier: boolean; readonly noSync: boolean };
}

export class BackgroundCheck {
  readonly #parts: BackgroundCheckParts;
  #state: CheckProgress["state"] = "none";
  #clustersChecked = 0;
  #report: CheckReport | undefined;
  #failure: BlockError | undefined;
  #stopped = false;
  #running: Promise<void> | undefined;

  constructor(parts: BackgroundCheckParts) {
    this.#parts = parts;
  }

  get progress(): CheckProgress {
    return {
      state: this.#state,
      clustersChecked: this.#clustersChecked,
      clustersTotal: this.#parts.clustersTotal,
      ...this.#parts.gate.status,
      entriesCleared: this.#report?.corruptionsFixed ?? 0,
      ...(this.#report !== undefined && { report: this.#report }),
      ...(this.#failure !== undefined && { failure: this.#failure.message }),
    };
  }

  /** Why nothing more may be allocated. */
  get failure(): BlockError | undefined {
    return this.#failure;
  }

  /** Why nothing more may be written at all: a write in place could hit what belongs to somebody else. */
  get corruption(): BlockError | undefined {
    return this.#failure instanceof ImageCorruptError ? this.#failure : undefined;
  }

  start(): void {
    this.#state = "running";
    this.#running = this.#run();
  }

  /** Resolves when it has ended, well or not. */
  ended(): Promise<void> {
    return this.#running ?? Promise.resolve();
  }

  /** Ends it early; the gate stays held. */
  async stop(): Promise<void> {
    this.#stopped = true;
    await this.#running;
  }

  async #run(): Promise<void> {
    const { gate, chaos, onClean } = this.#parts;
    if (!chaos.noBarrier) await gate.hold();
    try {
      await this.#check();
    } catch (error) {
      if (error instanceof CheckStoppedError) return;
      // Anything but a `BlockError` is a defect; here nobody could catch it, and nothing is allocated after it either.
      this.#failure = error instanceof BlockError ? error : new BlockError("io", String(error), { cause: error });
    }
    this.#state = this.#failure === undefined ? "clean" : "failed";
    if (!chaos.noBarrier) gate.release();
    if (this.#failure === undefined) onClean();
  }

  async #check(): Promise<void> {
    const { file, table, check, chaos } = this.#parts;
    const report = await check({
      stopped: () => this.#stopped,
      onProgress: (clusters) => {
        this.#clustersChecked = clusters;
      },
    });
    this.#report = report;
    const { corruptions, checkErrors } = report;
    if (corruptions > 0) {
      const why = `leads to ${corruptions} places that something else refers to as well; \`qemu-img check\` lists them`;
      throw new ImageCorruptError(file.path, { ...table, why });
    }
    if (checkErrors > 0) {
      throw new BlockError("io", `${file.path}: ${checkErrors} tables could not be read, so nothing is allocated`);
    }
    // Also without a repair: who marked the image as dirty may have died before that was durable.
    if (!chaos.noSync) await file.sync();
  }
}
