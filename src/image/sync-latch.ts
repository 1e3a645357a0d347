/**
 * Remembers that data was lost. After a failed sync the kernel may have dropped the dirty pages and marked them clean: a
 * second sync would succeed without the data being there. So the first failure is final: nothing is synced again, and
 * every later write and flush fails, until the image is opened anew.
 *
 * A failed sync latches whatever its code is: what it should have made durable had been acknowledged. A failed write
 * latches if it was an I/O error; running out of space or memory does not, because nobody was told that it succeeded.
 */
import { BlockError } from "../block/error.ts";
import type { File } from "../env/files.ts";
import { blockErrorFrom } from "./errors.ts";

export class SyncLatch {
  readonly #file: File;
  #failure: BlockError | undefined;

  constructor(file: File) {
    this.#file = file;
  }

  get latched(): boolean {
    return this.#failure !== undefined;
  }

  /** Throws `BlockError("io")` once latched. To be called before every write. */
  check(): void {
    if (this.#failure === undefined) return;
    const message = `writes to ${this.#file.path} have stopped since one was lost: ${this.#failure.message}`;
    throw new BlockError("io", message, { cause: this.#failure });
  }

  /** Makes durable what was written before the call. Throws `BlockError("io")`. */
  async sync(): Promise<void> {
    this.check();
    try {
      await this.#file.dataSync();
    } catch (error) {
      const mapped = blockErrorFrom(error);
      if (mapped instanceof BlockError) this.#failure ??= new BlockError("io", mapped.message, { cause: error });
      throw this.#failure ?? mapped;
    }
    // One that began earlier may have failed meanwhile, and have been told of pages that were ours.
    this.check();
  }

  /** The block error for a failed write. An I/O error latches. Returns what the caller is to throw. */
  writeFailed(error: unknown): unknown {
    const mapped = blockErrorFrom(error);
    if (mapped instanceof BlockError && mapped.code === "io") this.#failure ??= mapped;
    return mapped;
  }
}
