/**
 * Long work that waits for nothing, done in turns: what else there is to do, answering requests above all, comes in
 * between. For loops whose length an image decides.
 */
import type { ImageFile } from "./image-file.ts";

/** Of some ten nanoseconds each: a turn takes a few milliseconds. */
const STEPS_PER_TURN = 65_536;

export class Turns {
  readonly #file: ImageFile;
  #left = STEPS_PER_TURN;

  constructor(file: ImageFile) {
    this.#file = file;
  }

  /** `steps` more were done. True: await `next` before going on. */
  over(steps = 1): boolean {
    this.#left -= steps;
    return this.#left <= 0;
  }

  /** Resolves when others have had their turn. */
  async next(): Promise<void> {
    this.#left = STEPS_PER_TURN;
    await this.#file.pause();
  }
}
