import { expect, test, vi } from "vitest";
import type { TestModule } from "vitest/node";
import { reportLines } from "../../support/reporter.ts";
import { counts, itSeeded, Prng } from "../../support/seed.ts";
import { hasTool, missingHint, requireAsked, requireHost, requireRoot, requireTools } from "../../support/tools.ts";

type State = "passed" | "failed" | "skipped" | "pending";

function fakeModule(path: string, states: readonly State[], errors = 0): TestModule {
  const tests = states.map((state) => ({
    result: () => ({ state, note: state === "skipped" ? "needs x" : undefined }),
  }));
  const fake = {
    relativeModuleId: path,
    diagnostic: () => ({ duration: 1500 }),
    errors: () => Array.from({ length: errors }, () => new Error("hook")),
    children: { allSuites: () => [], allTests: () => tests },
  };
  return fake as unknown as TestModule;
}

test("the last line of a run counts every test once, and says nothing else", () => {
  const modules = [
    fakeModule("test/unit/a.test.ts", ["passed", "passed"]),
    fakeModule("test/interop/b.test.ts", ["skipped"]),
  ];
  expect(reportLines(modules, 0).at(-1)).toBe("2 passed, 0 failed, 1 skipped");
});

test("files that do not load, failing hooks, stray errors and tests that never ran all count as failures", () => {
  expect(reportLines([fakeModule("test/unit/a.test.ts", [], 1)], 0).at(-1)).toBe("0 passed, 1 failed, 0 skipped");
  expect(reportLines([fakeModule("test/unit/a.test.ts", ["passed"])], 2).at(-1)).toBe("1 passed, 2 failed, 0 skipped");
  expect(reportLines([fakeModule("test/unit/a.test.ts", ["pending"])], 0).at(-1)).toBe("0 passed, 1 failed, 0 skipped");
});

test("the report names each suite's time and every reason for skipping", () => {
  const lines = reportLines([fakeModule("test/interop/a.test.ts", ["skipped", "skipped"])], 0);
  expect(lines).toContain("skipped 2: needs x");
  expect(lines.find((line) => line.startsWith("suite interop"))).toContain("1.5 s");
});

test("the same seed and title give the same numbers, another title gives others", () => {
  const draw = (seed: number, title: string) => {
    const rng = new Prng(seed, title);
    return Array.from({ length: 8 }, () => rng.u32());
  };
  expect(draw(7, "a")).toEqual(draw(7, "a"));
  expect(draw(7, "a")).not.toEqual(draw(7, "b"));
  expect(draw(7, "a")).not.toEqual(draw(8, "a"));
});

itSeeded("whole numbers stay within their bounds and reach both of them", (rng) => {
  const seen = new Set(Array.from({ length: 1000 }, () => rng.integer(3, 6)));
  expect([...seen].sort()).toEqual([3, 4, 5, 6]);
});

itSeeded("random bytes are evenly spread", (rng) => {
  const bytes = new Uint8Array(1 << 16);
  rng.fill(bytes);
  const mean = bytes.reduce((sum, byte) => sum + byte, 0) / bytes.length;
  expect(Math.abs(mean - 127.5)).toBeLessThan(3);
});

test("shuffling keeps every item", () => {
  const items = [1, 2, 3, 4, 5];
  expect(new Prng(1).shuffle(items).sort()).toEqual(items);
});

test("counts are small here and large in CI", () => {
  withCi("", () => expect(counts({ local: 10, ci: 1000 })).toBe(10));
  withCi("true", () => expect(counts({ local: 10, ci: 1000 })).toBe(1000));
});

test("a missing tool skips a test with a hint, and in CI fails it", () => {
  const skips: string[] = [];
  const context = { skip: (note: string) => skips.push(note) } as unknown as Parameters<typeof requireTools>[0];
  withCi("", () => requireTools(context, ["sh", "no-such-tool"]));
  expect(skips).toEqual(["needs no-such-tool: run scripts/install-peers"]);
  withCi("true", () => expect(() => requireTools(context, ["no-such-tool"])).toThrow("run scripts/install-peers"));
  expect(hasTool("sh")).toBe(true);
  expect(missingHint(["sh"])).toBeUndefined();
});

test("so does whatever else a host lacks", () => {
  const skips: string[] = [];
  const context = { skip: (note: string) => skips.push(note) } as unknown as Parameters<typeof requireHost>[0];
  withCi("true", () => requireHost(context, undefined));
  withCi("", () => requireHost(context, "needs a moon"));
  expect(skips).toEqual(["needs a moon"]);
  withCi("true", () => expect(() => requireHost(context, "needs a moon")).toThrow("needs a moon"));
  using uid = vi.spyOn(process as { getuid(): number }, "getuid").mockReturnValue(1000);
  withCi("true", () => expect(() => requireRoot(context, "mounting")).toThrow("mounting is for root"));
  uid.mockReturnValue(0);
  withCi("true", () => requireRoot(context, "mounting"));
});

test("a long test runs in CI, and elsewhere when it is asked for", () => {
  const skips: string[] = [];
  const context = { skip: (note: string) => skips.push(note) } as unknown as Parameters<typeof requireAsked>[0];
  withCi("true", () => requireAsked(context, "A_MOON", "takes a month"));
  vi.stubEnv("A_MOON", "1");
  withCi("", () => requireAsked(context, "A_MOON", "takes a month"));
  expect(skips).toEqual([]);
  vi.unstubAllEnvs();
  withCi("", () => requireAsked(context, "A_MOON", "takes a month"));
  expect(skips).toEqual(["takes a month: set A_MOON=1 to run it"]);
});

function withCi(value: string, body: () => void): void {
  const before = process.env["CI"];
  process.env["CI"] = value;
  try {
    body();
  } finally {
    if (before === undefined) delete process.env["CI"];
    else process.env["CI"] = before;
  }
}
