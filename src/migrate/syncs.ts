/** Questions of the destination, each answered once the source has told all that it knew when it was asked. */
import type { DestinationPort } from "./destination-link.ts";

export class Syncs {
  readonly #waiting = new Map<number, (told: boolean) => void>();
  #next = 0;

  /** False: it was not told, for there is nobody to ask, or not any more. */
  ask(port: DestinationPort | undefined): Promise<boolean> {
    if (port === undefined) return Promise.resolve(false);
    const id = this.#next++;
    return new Promise((resolve) => {
      this.#waiting.set(id, resolve);
      port.send({ type: "sync", id });
    });
  }

  answered(id: number): void {
    this.#waiting.get(id)?.(true);
    this.#waiting.delete(id);
  }

  giveUp(): void {
    for (const resolve of this.#waiting.values()) resolve(false);
    this.#waiting.clear();
  }
}
