/**
 * Seeded randomness for tests. One number, `BLOCKFERRY_SEED`, decides a whole run; each test gets its own generator,
 * derived from that number and the test's title, so that one test run alone sees what it saw in the full run.
 */
import { onTestFailed, test } from "vitest";

/** The seed of this run: vitest.config.ts draws one when the environment has none. */
export function runSeed(): number {
  const text = process.env["BLOCKFERRY_SEED"] ?? "";
  const seed = Number(text);
  if (text === "" || !Number.isSafeInteger(seed) || seed < 0) {
    throw new Error(`BLOCKFERRY_SEED must be a whole number, not ${JSON.stringify(text)}`);
  }
  return seed;
}

/** Small counts while developing, large ones in CI. */
export function counts({ local, ci }: { local: number; ci: number }): number {
  return process.env["CI"] ? ci : local;
}

/** In CI all of `items`; while developing `local` of them, drawn from the run's seed. */
export function drawn<T>(items: readonly T[], local: number): readonly T[] {
  if (counts({ local: 0, ci: 1 }) === 1) return items;
  return new Prng(runSeed(), `drawn from ${items.length}`).shuffle(items).slice(0, local);
}

/** What fast-check needs to repeat a run: `fc.assert(property, fcParameters({ local: 100, ci: 1000 }))`. */
export function fcParameters(runs: { local: number; ci: number }): { seed: number; numRuns: number } {
  return { seed: runSeed() | 0, numRuns: counts(runs) };
}

/** xoshiro128**, seeded through splitmix32. Not for secrets. */
export class Prng {
  readonly #state = new Uint32Array(4);

  constructor(seed: number, stream = "") {
    let mixed = hash(seed, stream);
    for (let i = 0; i < 4; i++) {
      mixed = (mixed + 0x9e3779b9) >>> 0;
      let word = Math.imul(mixed ^ (mixed >>> 16), 0x21f0aaad);
      word = Math.imul(word ^ (word >>> 15), 0x735a2d97);
      this.#state[i] = word ^ (word >>> 15);
    }
  }

  /** 32 random bits, as an unsigned number. */
  u32(): number {
    const s = this.#state;
    const [s0, s1, s2, s3] = [s[0] ?? 0, s[1] ?? 0, s[2] ?? 0, s[3] ?? 0];
    const result = Math.imul(rotateLeft(Math.imul(s1, 5), 7), 9) >>> 0;
    const x2 = s2 ^ s0;
    const x3 = s3 ^ s1;
    s[1] = s1 ^ x2;
    s[0] = s0 ^ x3;
    s[2] = x2 ^ (s1 << 9);
    s[3] = rotateLeft(x3, 11);
    return result;
  }

  /** In [0, 1), with 53 random bits. */
  float(): number {
    return ((this.u32() >>> 5) * 2 ** 26 + (this.u32() >>> 6)) / 2 ** 53;
  }

  /** A whole number from `min` to `max`, both included. */
  integer(min: number, max: number): number {
    return min + Math.floor(this.float() * (max - min + 1));
  }

  chance(probability: number): boolean {
    return this.float() < probability;
  }

  pick<T>(items: readonly T[]): T {
    if (items.length === 0) throw new Error("nothing to pick from");
    return items[this.integer(0, items.length - 1)] as T;
  }

  /** A new, shuffled copy. */
  shuffle<T>(items: readonly T[]): T[] {
    const copy = [...items];
    for (let i = copy.length - 1; i > 0; i--) {
      const j = this.integer(0, i);
      [copy[i], copy[j]] = [copy[j] as T, copy[i] as T];
    }
    return copy;
  }

  fill(into: Uint8Array): void {
    for (let i = 0; i < into.length; i++) into[i] = this.u32() >>> 24;
  }
}

/** A test that is handed its own generator. When it fails, the command that repeats it is printed. */
export function itSeeded(title: string, body: (rng: Prng) => void | Promise<void>, timeoutMs?: number): void {
  test(title, { ...(timeoutMs !== undefined && { timeout: timeoutMs }) }, async ({ task }) => {
    const seed = runSeed();
    onTestFailed(() => {
      console.error(`repeat with: BLOCKFERRY_SEED=${seed} npm test -- ${task.file.name} -t ${JSON.stringify(title)}`);
    });
    await body(new Prng(seed, title));
  });
}

/** FNV-1a over the stream's name, begun at the seed. */
function hash(seed: number, stream: string): number {
  let state = (0x811c9dc5 ^ seed ^ Math.floor(seed / 2 ** 32)) >>> 0;
  for (let i = 0; i < stream.length; i++) state = Math.imul(state ^ stream.charCodeAt(i), 0x01000193) >>> 0;
  return state;
}

function rotateLeft(word: number, bits: number): number {
  return (word << bits) | (word >>> (32 - bits));
}
