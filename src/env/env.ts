/**
 * The world as the core sees it. `image`, `cor`, `stream`, `link` and `migrate` reach clocks, randomness, files and
 * links through this object and through nothing else, so that the simulator can run the very same classes.
 * The real one is `src/os/real-env.ts`.
 */
import type { Chaos } from "./chaos.ts";
import type { Clock } from "./clock.ts";
import type { Files } from "./files.ts";
import type { Links } from "./links.ts";
import type { Random } from "./random.ts";

export interface Env {
  readonly clock: Clock;
  readonly random: Random;
  readonly files: Files;
  readonly links: Links;
  readonly chaos: Chaos;
}
