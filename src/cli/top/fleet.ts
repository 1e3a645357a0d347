/** The instances that `top` watches: those that were named, or all that there are just now. */
import { type InstanceView, Watched, type WatchOptions } from "./watched.ts";

export interface FleetOptions extends Pick<WatchOptions, "clock" | "dial" | "onEvent"> {
  /** Control sockets; undefined: whatever `discover` finds, again at each refresh. */
  readonly named: readonly string[] | undefined;
  readonly discover: () => readonly string[];
}

export class Fleet implements Disposable {
  readonly #options: FleetOptions;
  readonly #watched = new Map<string, Watched>();

  constructor(options: FleetOptions) {
    this.#options = options;
  }

  /** How they all are, in the order of their sockets, or as they were named. Unnamed ones that have ended are left out. */
  async refresh(): Promise<InstanceView[]> {
    const { named, discover } = this.#options;
    const paths = named ?? discover();
    for (const [path, watched] of this.#watched) if (!paths.includes(path)) this.#drop(watched);
    const views = await Promise.all(paths.map((path) => this.#of(path).refresh()));
    return named === undefined ? views.filter(({ ended }) => !ended) : views;
  }

  [Symbol.dispose](): void {
    for (const watched of this.#watched.values()) this.#drop(watched);
  }

  #of(control: string): Watched {
    const known = this.#watched.get(control);
    if (known !== undefined) return known;
    const watched = new Watched({ ...this.#options, control });
    this.#watched.set(control, watched);
    return watched;
  }

  #drop(watched: Watched): void {
    this.#watched.delete(watched.control);
    watched[Symbol.dispose]();
  }
}
