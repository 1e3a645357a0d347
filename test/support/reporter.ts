/**
 * What a run prints besides vitest's own report: the seed, why tests were skipped, the time of each suite (the folder
 * below test/), and as the very last line, for scripts to read, `N passed, N failed, N skipped`.
 *
 * A file that fails to load, a failing hook and an error outside of any test each count as one failure, so that
 * "0 failed" means what it says.
 */
import type { Reporter, TestModule } from "vitest/node";

type Counts = { passed: number; failed: number; skipped: number };

export class SuiteReporter implements Reporter {
  readonly #seed: string;
  readonly #print: (line: string) => void;

  constructor(seed: string, print: (line: string) => void = (line) => process.stdout.write(`${line}\n`)) {
    this.#seed = seed;
    this.#print = print;
  }

  onTestRunStart(): void {
    this.#print(`seed: BLOCKFERRY_SEED=${this.#seed}`);
  }

  onTestRunEnd(modules: ReadonlyArray<TestModule>, unhandledErrors: ReadonlyArray<unknown>): void {
    for (const line of reportLines(modules, unhandledErrors.length)) this.#print(line);
  }
}

/** All that is printed at the end of a run, last line last. */
export function reportLines(modules: ReadonlyArray<TestModule>, unhandledErrorCount: number): string[] {
  const counts: Counts = { passed: 0, failed: unhandledErrorCount, skipped: 0 };
  const suites = new Map<string, { files: number; durationMs: number; counts: Counts }>();
  const notes = new Map<string, number>();

  for (const module of modules) {
    const name = suiteOf(module.relativeModuleId);
    const suite = suites.get(name) ?? { files: 0, durationMs: 0, counts: { passed: 0, failed: 0, skipped: 0 } };
    suites.set(name, suite);
    suite.files += 1;
    suite.durationMs += module.diagnostic().duration;
    countModule(module, suite.counts, notes);
  }
  for (const suite of suites.values()) {
    counts.passed += suite.counts.passed;
    counts.failed += suite.counts.failed;
    counts.skipped += suite.counts.skipped;
  }

  const lines = [""];
  for (const [note, count] of [...notes].sort()) lines.push(`skipped ${count}: ${note}`);
  for (const [name, suite] of [...suites].sort()) {
    const seconds = (suite.durationMs / 1000).toFixed(1).padStart(7);
    lines.push(`suite ${name.padEnd(8)} ${seconds} s  ${suite.files} files  ${summary(suite.counts)}`);
  }
  lines.push(summary(counts));
  return lines;
}

function countModule(module: TestModule, counts: Counts, notes: Map<string, number>): void {
  counts.failed += module.errors().length;
  for (const suite of module.children.allSuites()) counts.failed += suite.errors().length;
  for (const test of module.children.allTests()) {
    const result = test.result();
    // A test that is still pending when the run ends was never run: that is not a pass.
    if (result.state === "pending") counts.failed += 1;
    else counts[result.state] += 1;
    if (result.state === "skipped" && result.note) notes.set(result.note, (notes.get(result.note) ?? 0) + 1);
  }
}

function summary({ passed, failed, skipped }: Counts): string {
  return `${passed} passed, ${failed} failed, ${skipped} skipped`;
}

function suiteOf(path: string): string {
  return /(?:^|\/)test\/([^/]+)\//.exec(path)?.[1] ?? "other";
}
