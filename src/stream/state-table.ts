/** A state, changed by `advance` along the edges of a table and in no other way. A step that the table lacks is our bug. */
export class StateTable<State extends string> {
  readonly #edges: Readonly<Record<State, readonly State[]>>;
  #current: State;
  #sinceMs: number;

  constructor(edges: Readonly<Record<State, readonly State[]>>, initial: State, nowMs: number) {
    this.#edges = edges;
    this.#current = initial;
    this.#sinceMs = nowMs;
  }

  get current(): State {
    return this.#current;
  }

  /** When this state began, on the clock whose times `advance` is given. */
  get sinceMs(): number {
    return this.#sinceMs;
  }

  /** No edge leads on. */
  get final(): boolean {
    return this.#edges[this.#current].length === 0;
  }

  advance(next: State, nowMs: number): void {
    if (!this.#edges[this.#current].includes(next)) {
      throw new Error(`there is no step from "${this.#current}" to "${next}"`);
    }
    this.#current = next;
    this.#sinceMs = nowMs;
  }
}
