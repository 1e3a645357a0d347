/** The world as it is. Only the command line, tests and benchmarks make one. */
import { NO_CHAOS } from "../env/chaos.ts";
import type { Env } from "../env/env.ts";
import { realClock } from "./clock.ts";
import { realLinks } from "./dial.ts";
import { RealFiles } from "./files.ts";
import { loadNative, type NativeResult } from "./native.ts";
import { realRandom } from "./random.ts";

/** Files of one Env share the bound on what they have dirty: make one Env for a process. */
export function createRealEnv(native: NativeResult = loadNative()): Env {
  return { clock: realClock, random: realRandom, files: new RealFiles(native), links: realLinks, chaos: NO_CHAOS };
}
