import { describe, expect, test } from "vitest";
import { CACHED_RUNS_MAX, ExtentCache, ExtentFinder, type SeekCalls } from "../../../src/os/file-extents.ts";
import { itSeeded } from "../../support/seed.ts";

type Kind = "data" | "hole";

describe("the extent cache", () => {
  itSeeded("knows what a map of single bytes knows, and nothing else", (rng) => {
    const SPAN = 200;
    const cache = new ExtentCache();
    const model: (Kind | undefined)[] = Array.from({ length: SPAN });
    for (let round = 0; round < 4_000; round++) {
      const start = rng.integer(0, SPAN - 1);
      const end = rng.integer(start + 1, Math.min(SPAN, start + 40));
      const kind = rng.pick<Kind | undefined>(["data", "hole", undefined]);
      if (kind) cache.add(start, end, kind);
      else cache.invalidate(start, end);
      model.fill(kind, start, end);
      const offset = rng.integer(0, SPAN - 1);
      const found = cache.lookup(offset);
      expect(found?.kind).toBe(model[offset]);
      // As far as it goes it is right, and it goes as far as possible.
      if (found) {
        expect(model.slice(offset, found.end).every((known) => known === found.kind)).toBe(true);
        expect(model[found.end]).not.toBe(found.kind);
      }
    }
  });

  test("stays small, whatever is asked", () => {
    const cache = new ExtentCache();
    for (let i = 0; i < 3 * CACHED_RUNS_MAX; i++) cache.add(2 * i, 2 * i + 1, i % 2 === 0 ? "data" : "hole");
    expect(cache.size).toBeLessThanOrEqual(CACHED_RUNS_MAX);
    expect(cache.lookup(6 * CACHED_RUNS_MAX - 2)).toEqual({ kind: "hole", end: 6 * CACHED_RUNS_MAX - 1 });
  });
});

/** A file of 100 bytes, all hole but for [40, 60), whose answers arrive when they are let go. */
class SlowKernel implements SeekCalls {
  readonly asked: string[] = [];
  readonly #held: (() => void)[] = [];

  seekData(_fd: number, offset: number): Promise<number> {
    return this.#answer(`data ${offset}`, offset < 40 ? 40 : offset < 60 ? offset : -6);
  }

  seekHole(_fd: number, offset: number): Promise<number> {
    return this.#answer(`hole ${offset}`, offset >= 40 && offset < 60 ? 60 : offset);
  }

  seekEnd(): Promise<number> {
    return this.#answer("end", 100);
  }

  /** Lets answers go until none is asked for any more. */
  async deliver(): Promise<void> {
    for (let next = this.#held.shift(); next; next = this.#held.shift()) {
      next();
      for (let turn = 0; turn < 10; turn++) await Promise.resolve();
    }
  }

  #answer(question: string, answer: number): Promise<number> {
    this.asked.push(question);
    return new Promise((resolve) => this.#held.push(() => resolve(answer)));
  }
}

async function ask(kernel: SlowKernel, finder: ExtentFinder, offset: number) {
  const answer = finder.find(offset);
  await kernel.deliver();
  return answer;
}

describe("the extent finder", () => {
  test("asks the kernel once", async () => {
    const kernel = new SlowKernel();
    const finder = new ExtentFinder(kernel, 3, "image");
    expect(await ask(kernel, finder, 0)).toEqual({ kind: "hole", end: 40 });
    expect(await ask(kernel, finder, 45)).toEqual({ kind: "data", end: 60 });
    expect(await ask(kernel, finder, 60)).toEqual({ kind: "hole", end: 100 });
    const { length } = kernel.asked;
    expect(await finder.find(10)).toEqual({ kind: "hole", end: 40 });
    expect(await finder.find(59)).toEqual({ kind: "data", end: 60 });
    expect(await finder.find(99)).toEqual({ kind: "hole", end: 100 });
    expect(kernel.asked).toHaveLength(length);
  });

  test("forgets no more than what was changed", async () => {
    const kernel = new SlowKernel();
    const finder = new ExtentFinder(kernel, 3, "image");
    await ask(kernel, finder, 0);
    finder.invalidate(10, 20);
    const { length } = kernel.asked;
    expect(await finder.find(5)).toEqual({ kind: "hole", end: 10 });
    expect(await finder.find(20)).toEqual({ kind: "hole", end: 40 });
    expect(kernel.asked).toHaveLength(length);
    expect(await ask(kernel, finder, 15)).toEqual({ kind: "hole", end: 40 });
    expect(kernel.asked.length).toBeGreaterThan(length);
  });

  // Each is an order of the write's start (before it: `invalidate`), its end (after it: `invalidate`), the question and
  // the arrival of its old answer, "hole". Afterwards the finder must not know [10, 20) to be a hole.
  const orders = {
    "a write that ends while the answer is on its way": ["start", "ask", "end", "arrive"],
    "a write that begins and ends while the answer is on its way": ["ask", "start", "end", "arrive"],
    "a write that ends after the answer has come": ["start", "ask", "arrive", "end"],
    "a write that begins before the answer has come": ["ask", "start", "arrive", "end"],
    "a write that begins after the answer has come": ["ask", "arrive", "start", "end"],
  } as const;
  for (const [title, order] of Object.entries(orders)) {
    test(`keeps no hole from before ${title}`, async () => {
      const kernel = new SlowKernel();
      const finder = new ExtentFinder(kernel, 3, "image");
      let answer: Promise<unknown> | undefined;
      for (const step of order) {
        if (step === "ask") answer = finder.find(0);
        else if (step === "arrive") await kernel.deliver();
        else finder.invalidate(10, 20);
      }
      await answer;
      const { length } = kernel.asked;
      await ask(kernel, finder, 15);
      expect(kernel.asked.length).toBeGreaterThan(length);
      // What lies before the write is known.
      expect(await finder.find(5)).toEqual({ kind: "hole", end: 10 });
    });
  }

  test("answers when the data was punched out between its two questions", async () => {
    const calls: SeekCalls = {
      seekData: async (_, offset) => offset,
      seekHole: async (_, offset) => offset,
      seekEnd: async () => 100,
    };
    expect(await new ExtentFinder(calls, 3, "image").find(7)).toEqual({ kind: "data", end: 8 });
  });

  test("says nothing where the file system cannot tell, and fails where the disk does", async () => {
    const failing = (errno: number): SeekCalls => ({
      seekData: async () => -errno,
      seekHole: async () => 50,
      seekEnd: async () => 100,
    });
    expect(await new ExtentFinder(failing(22), 3, "image").find(0)).toBeUndefined();
    expect(await new ExtentFinder(failing(95), 3, "image").find(0)).toBeUndefined();
    const broken = new ExtentFinder(failing(5), 3, "image").find(0);
    await expect(broken).rejects.toMatchObject({ name: "FileError", code: "EIO" });
    await expect(new ExtentFinder(failing(6), 3, "image").find(100)).rejects.toMatchObject({ code: "EINVAL" });
  });
});
