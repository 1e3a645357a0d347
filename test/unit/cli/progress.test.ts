/** Sizes, rates and durations as people read them; lines, bars and other forms of progress. */
import { closeSync, mkdtempDisposableSync, openSync, readFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import { ProgressDisplay } from "../../../src/cli/progress/display.ts";
import {
  formatDuration,
  formatRate,
  formatSize,
  type Progress,
  percentOf,
  progressBar,
  progressHundredths,
  progressJson,
  progressLine,
} from "../../../src/cli/progress/format.ts";
import { expandBareFlags, type ProgressForm, parseProgress } from "../../../src/cli/progress/option.ts";

const MIB = 2 ** 20;
const GIB = 2 ** 30;

const halfway: Progress = {
  localBytes: 12.4 * GIB,
  sizeBytes: 40 * GIB,
  rateBytesPerSecond: 182 * MIB,
  etaSeconds: 151,
  state: "hydrating",
  stalledReason: null,
};

describe("numbers", () => {
  test.each([
    [0, "0 B"],
    [1, "1 B"],
    [1023, "1023 B"],
    [1024, "1.0 KiB"],
    [1536, "1.5 KiB"],
    [99.94 * 1024, "99.9 KiB"],
    [99.96 * 1024, "100 KiB"],
    [MIB - 1, "1.0 MiB"],
    [1023 * 1024, "1023 KiB"],
    [182 * MIB, "182 MiB"],
    [12.4 * GIB, "12.4 GiB"],
    [16 * 2 ** 40, "16.0 TiB"],
    [2 ** 53, "8.0 PiB"],
    [2 ** 63, "8192 PiB"],
  ])("%d bytes are %s", (bytes, text) => {
    expect(formatSize(bytes)).toBe(text);
    expect(formatRate(bytes)).toBe(`${text}/s`);
  });

  test.each([
    [0, "0:00:00"],
    [0.4, "0:00:00"],
    [59.6, "0:01:00"],
    [151, "0:02:31"],
    [3599.9, "1:00:00"],
    [360_000, "100:00:00"],
    [-1, "0:00:00"],
  ])("%d seconds are %s", (seconds, text) => expect(formatDuration(seconds)).toBe(text));

  test("only all of it is 100 %", () => {
    expect(percentOf(999_999, 1_000_000)).toBe(99.9);
    expect(percentOf(1_000_000, 1_000_000)).toBe(100);
    expect(percentOf(0, 0)).toBe(100);
    expect(percentOf(1, 3)).toBe(33.3);
  });
});

describe("lines", () => {
  test("are what the documentation says", () => {
    expect(progressLine(halfway)).toBe("12.4 GiB / 40.0 GiB  31.0%  182 MiB/s  ETA 0:02:31");
    expect(progressLine({ ...halfway, etaSeconds: null })).toMatch(/ {2}182 MiB\/s {2}ETA -:--:--$/);
    expect(progressLine({ ...halfway, state: "stalled", stalledReason: "the source is away" })).toMatch(
      /31\.0% {2}stalled: the source is away$/,
    );
    expect(progressLine({ ...halfway, state: "paused" })).toMatch(/31\.0% {2}paused$/);
    expect(progressLine({ ...halfway, localBytes: 40 * GIB, state: "hydrated" })).toMatch(/100\.0% {2}hydrated$/);
  });

  test("as JSON have these keys", () => {
    expect(JSON.parse(progressJson({ ...halfway, rateBytesPerSecond: 1.7 }))).toEqual({
      localBytes: 12.4 * GIB,
      sizeBytes: 40 * GIB,
      percent: 31,
      rateBytesPerSecond: 2,
      etaSeconds: 151,
      state: "hydrating",
      stalledReason: null,
    });
  });

  test("for a file descriptor are nbdcopy's", () => {
    expect(progressHundredths(halfway)).toBe("31/100");
    expect(progressHundredths({ ...halfway, localBytes: 40 * GIB })).toBe("100/100");
  });

  test("as a bar never reach the last column, and give the bar up where it has no room", () => {
    for (let columns = 1; columns < 200; columns++) {
      const bar = progressBar(halfway, columns);
      expect(bar.length).toBeLessThan(columns);
      expect(bar.startsWith("[")).toBe(columns >= progressLine(halfway).length + 15);
    }
    expect(progressBar(halfway, 200)).toBe(`[${"#".repeat(15)}${"-".repeat(35)}]  ${progressLine(halfway)}`);
  });
});

describe("--progress", () => {
  test("takes words and file descriptors, and nothing else", () => {
    expect(parseProgress("json")).toEqual({ kind: "json" });
    expect(parseProgress("3")).toEqual({ kind: "fd", fd: 3 });
    for (const text of ["", "0", "-1", "1.5", "JSON", "12345"])
      expect(() => parseProgress(text)).toThrow(/one of auto/);
  });

  test("alone does not swallow the next word", () => {
    expect(expandBareFlags(["clone", "--progress", "uri", "image"])).toEqual([
      "clone",
      "--progress=auto",
      "uri",
      "image",
    ]);
    expect(expandBareFlags(["--progress=json", "--", "--progress"])).toEqual(["--progress=json", "--", "--progress"]);
  });
});

describe("a display", () => {
  beforeEach(() => void vi.useFakeTimers());
  afterEach(() => void vi.useRealTimers());

  function shown(form: ProgressForm, isTTY: boolean): { text: () => string; display: ProgressDisplay; now: Progress } {
    let text = "";
    const now = { ...halfway };
    const output = { isTTY, columns: 100, write: (more: string) => (text += more) };
    const display = new ProgressDisplay({ form, output, read: () => now });
    return { text: () => text, display, now };
  }

  test("writes a plain line a second where nobody watches, and a last one at the end", () => {
    const { text, display } = shown({ kind: "auto" }, false);
    vi.advanceTimersByTime(3500);
    expect(text()).toBe(`${progressLine(halfway)}\n`.repeat(3));
    display.stop();
    display.stop();
    vi.advanceTimersByTime(5000);
    expect(text()).toBe(`${progressLine(halfway)}\n`.repeat(4));
    expect(vi.getTimerCount()).toBe(0);
  });

  test("rewrites one line on a terminal, also when it becomes shorter, and leaves it behind", () => {
    const { text, display, now } = shown({ kind: "auto" }, true);
    vi.advanceTimersByTime(200);
    const first = progressBar(halfway, 100);
    expect(text()).toBe(`\r${first}`);
    Object.assign(now, { state: "paused" });
    vi.advanceTimersByTime(200);
    expect(text()).not.toContain("\n");
    expect(text().slice(1 + first.length)).toBe(
      `\r${progressBar({ ...halfway, state: "paused" }, 100).padEnd(first.length)}`,
    );
    display.stop();
    expect(text().endsWith("\n")).toBe(true);
  });

  test("writes JSON, one object a line", () => {
    const { text, display } = shown({ kind: "json" }, true);
    vi.advanceTimersByTime(2000);
    display[Symbol.dispose]();
    const lines = text().trimEnd().split("\n");
    expect(lines).toHaveLength(3);
    for (const line of lines) expect(JSON.parse(line)).toMatchObject({ percent: 31 });
  });

  test("says nothing with none, and keeps a hostile reason from the terminal", () => {
    expect(shown({ kind: "none" }, true).display.stop()).toBeUndefined();
    expect(vi.getTimerCount()).toBe(0);
    const { text, display, now } = shown({ kind: "plain" }, true);
    Object.assign(now, { state: "stalled", stalledReason: "\u001b[2J" });
    display.show();
    expect(text()).toContain("\\u001b[2J");
    display.stop();
  });

  test("writes hundredths to a file descriptor, and nothing else anywhere", () => {
    using folder = mkdtempDisposableSync(join(tmpdir(), "blockferry-progress-"));
    const path = join(folder.path, "progress");
    const fd = openSync(path, "w");
    const { text, display } = shown({ kind: "fd", fd }, true);
    vi.advanceTimersByTime(2000);
    display.stop();
    closeSync(fd);
    expect(readFileSync(path, "utf8")).toBe("31/100\n".repeat(3));
    expect(text()).toBe("");
  });

  test("a file descriptor that is not there does not stop the copy", () => {
    const { text, display } = shown({ kind: "fd", fd: 9999 }, false);
    vi.advanceTimersByTime(3000);
    display.stop();
    expect(text()).toBe("");
  });
});
