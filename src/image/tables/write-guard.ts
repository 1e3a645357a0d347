/** What stands between a request and what it wants to change: a check that has failed, a file that has lost data, the gate. */
import { BlockError } from "../../block/error.ts";
import type { BackgroundCheck } from "./background-check.ts";
import { type Gate, RetiredError } from "./gate.ts";
import type { ImageFile } from "./image-file.ts";

/** Something in the header that has to be written before anything else is. */
export class Preparation {
  readonly #isDone: () => boolean;
  readonly #act: () => Promise<void>;
  #running: Promise<void> | undefined;

  constructor(isDone: () => boolean, act: () => Promise<void>) {
    this.#isDone = isDone;
    this.#act = act;
  }

  get done(): boolean {
    return this.#isDone();
  }

  async prepare(): Promise<void> {
    if (this.done) return;
    this.#running ??= this.#act().finally(() => {
      this.#running = undefined;
    });
    await this.#running;
  }

  /** Resolves when nothing that `prepare` has begun is under way. */
  async settled(): Promise<void> {
    await this.#running?.catch(() => undefined);
  }
}

export interface WriteGuardParts {
  readonly file: ImageFile;
  readonly check: BackgroundCheck;
  readonly gate: Gate;
  readonly preparation: Preparation;
}

export class WriteGuard {
  readonly #parts: WriteGuardParts;
  #retired = false;

  constructor(parts: WriteGuardParts) {
    this.#parts = parts;
  }

  /** To be called before anything is written. Throws `BlockError` when nothing may be written. */
  async prepare(): Promise<void> {
    const { check, file, preparation } = this.#parts;
    if (check.corruption !== undefined) throw refusal(check.corruption);
    file.check();
    if (preparation.done) return;
    if (this.#retired) throw new RetiredError("the tables were dropped");
    await preparation.prepare();
  }

  /** Whether a write in place may go ahead without awaiting anything. */
  get writesNow(): boolean {
    const { check, file, preparation } = this.#parts;
    return preparation.done && check.corruption === undefined && !file.latched;
  }

  /** Passes the gate; `gate.leave` is to be called exactly once. Throws `BlockError` when nothing may be allocated. */
  async enter(): Promise<void> {
    const { check, gate } = this.#parts;
    await gate.enter();
    if (check.failure === undefined) return;
    gate.leave();
    throw refusal(check.failure);
  }

  /** Resolves when nobody changes header or tables any more; nothing is begun from now on. */
  async retire(): Promise<void> {
    const { check, gate, preparation } = this.#parts;
    this.#retired = true;
    await Promise.all([check.stop(), gate.retire(), preparation.settled()]);
  }
}

/** An error of its own for each request: its stack says who asked. */
function refusal(cause: BlockError): BlockError {
  return new BlockError("io", `nothing more is written: ${cause.message}`, { cause });
}
