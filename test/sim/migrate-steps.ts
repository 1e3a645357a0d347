/**
 * Counts what processes do to files, and if that is wished what they send, so that a fault can be ordered at each step:
 * before it, after it (the process does not learn of it), or a moment later, when a message that follows from it is on its
 * way.
 */
import type { Env } from "../../src/env/env.ts";
import type { File, Files, OpenOptions } from "../../src/env/files.ts";
import type { ByteStream } from "../../src/env/links.ts";
import type { SimEnv } from "./sim-env.ts";

export type When = "before" | "after" | "later";
export const WHENS: readonly When[] = ["before", "after", "later"];
/** Longer than a continuation takes, shorter than a message does. */
const LATER_MS = 0.01;

const CHANGES: ReadonlySet<PropertyKey> = new Set(["write", "truncate", "punchHole", "zeroRange", "dataSync"]);

/** Something that lasts, or a message that leaves. */
export type StepKind = "file" | "send";

export class Steps {
  /** Those that were taken while it was counting. */
  readonly kinds: StepKind[] = [];
  counting = false;
  /** Counted ones that have not come to their end. */
  underWay = 0;
  /** Called before and after each step, whoever counts. */
  onStep: () => void = () => {};
  #order: { readonly step: number; readonly when: When; readonly fault: () => void } | undefined;

  /** At the step of this number, from 0, `fault` happens once. */
  order(step: number, when: When, fault: () => void): void {
    this.#order = { step, when, fault };
  }

  /** What has not happened by now will not. */
  disarm(): void {
    this.#order = undefined;
    this.counting = false;
  }

  async take<T>(env: SimEnv, act: () => Promise<T>): Promise<T> {
    this.onStep();
    const step = this.#count("file");
    this.#fire(step, "before");
    if (!env.process.alive) return await never();
    if (step >= 0) this.underWay += 1;
    const result = await act().finally(() => {
      if (step >= 0) this.underWay -= 1;
    });
    this.onStep();
    this.#fireAfter(step);
    if (!env.process.alive) return await never();
    return result;
  }

  /** The same for what is done in one turn. */
  takeNow(env: SimEnv, act: () => void): void {
    const step = this.#count("send");
    this.#fire(step, "before");
    if (!env.process.alive) return;
    act();
    this.#fireAfter(step);
  }

  later: (delayMs: number, act: () => void) => void = () => {};

  /** Its number; -1: it does not count. */
  #count(kind: StepKind): number {
    return this.counting ? this.kinds.push(kind) - 1 : -1;
  }

  #fireAfter(step: number): void {
    this.#fire(step, "after");
    const order = this.#order;
    if (order?.step !== step || order.when !== "later") return;
    // Not a timer of the process: it may be the one that dies.
    this.#order = undefined;
    this.later(LATER_MS, order.fault);
  }

  #fire(step: number, when: When): void {
    const order = this.#order;
    if (order?.step !== step || order.when !== when) return;
    this.#order = undefined;
    order.fault();
  }
}

/** `env`, whose files count. */
export function stepping(env: SimEnv, steps: Steps): Env {
  const { clock, random, links, chaos } = env;
  return { clock, random, links, chaos, files: new SteppingFiles(env, steps) };
}

class SteppingFiles implements Files {
  readonly #env: SimEnv;
  readonly #steps: Steps;

  constructor(env: SimEnv, steps: Steps) {
    this.#env = env;
    this.#steps = steps;
  }

  async open(options: OpenOptions): Promise<File> {
    const open = (): Promise<File> => this.#env.files.open(options);
    const file = options.create === true ? await this.#steps.take(this.#env, open) : await open();
    return new Proxy(file, {
      get: (target, property) => {
        const value: unknown = Reflect.get(target, property, target);
        if (typeof value !== "function") return value;
        const bound = value.bind(target) as (...args: unknown[]) => Promise<unknown>;
        if (!CHANGES.has(property)) return bound;
        return (...args: unknown[]) => this.#steps.take(this.#env, () => bound(...args));
      },
    });
  }

  exists(path: string): Promise<boolean> {
    return this.#env.files.exists(path);
  }

  rename(from: string, to: string): Promise<void> {
    return this.#steps.take(this.#env, () => this.#env.files.rename(from, to));
  }

  unlink(path: string): Promise<void> {
    return this.#steps.take(this.#env, () => this.#env.files.unlink(path));
  }

  syncDirectory(path: string): Promise<void> {
    return this.#steps.take(this.#env, () => this.#env.files.syncDirectory(path));
  }
}

/** `stream`, whose every write counts. */
export function steppingStream(stream: ByteStream, env: SimEnv, steps: Steps): ByteStream {
  return new Proxy(stream, {
    get: (target, property) => {
      const value: unknown = Reflect.get(target, property, target);
      if (typeof value !== "function") return value;
      const bound = value.bind(target) as (...args: unknown[]) => void;
      if (property !== "write") return bound;
      return (...args: unknown[]) => steps.takeNow(env, () => bound(...args));
    },
  });
}

function never<T>(): Promise<T> {
  return new Promise(() => undefined);
}
