/** A process of a simulated host. Once it is dead nothing calls it back. */
export class SimProcess {
  readonly name: string;
  #alive = true;
  readonly #mourners: (() => void)[] = [];

  constructor(name: string) {
    this.name = name;
  }

  get alive(): boolean {
    return this.#alive;
  }

  onDeath(listener: () => void): void {
    this.#mourners.push(listener);
  }

  /** Idempotent. */
  die(): void {
    if (!this.#alive) return;
    this.#alive = false;
    for (const listener of this.#mourners) listener();
  }
}
