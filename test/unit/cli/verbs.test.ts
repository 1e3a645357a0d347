/** What the verbs print, what values they take, and where they look for an instance. */
import { chmodSync, mkdirSync, mkdtempDisposableSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { CliError } from "../../../src/cli/cli-error.ts";
import {
  checkRuntimeDirectory,
  checkSocketPlace,
  runtimeDirectory,
} from "../../../src/cli/instance/runtime-directory.ts";
import { joinRuns, mapColumns, renderTotals } from "../../../src/cli/verbs/map.ts";
import { renderEvent, renderRawStatus, renderStatus } from "../../../src/cli/verbs/status-text.ts";
import { parseDuration, parseRate } from "../../../src/cli/verbs/values.ts";
import { cloneStatus } from "../control/statuses.ts";

describe("status", () => {
  test("for people", () => {
    expect(renderStatus(cloneStatus())).toBe(`clone: running, 1 client, up 0:01:16  (pid 4711, blockferry 0.1.0)
  nbd+unix:///vda?socket=/run/vda.sock
vda: running  /vm/disk.raw  (raw, 40.0 GiB)
  hydrating  12.4 GiB / 40.0 GiB  30.9%  182 MiB/s  ETA 0:02:31  (limit 200 MiB/s)
  missing    27.6 GiB; fetched 10.0 GiB, zero 2.0 GiB
  unreadable 4096+8192 EIO and 1 more
  source     nbd://storage/vda  connected since 2026-01-02T03:04:06.000Z, 2 reconnects
next: blockferry wait --for=hydrated
`);
  });

  test("in one line of words", () => {
    const { localBytes, missingBytes } = cloneStatus().disks[0] ?? {};
    expect(renderRawStatus(cloneStatus())).toBe(
      "role=clone pid=4711 state=running clients=1 uptime=75 disk=vda job=running size=42949672960 " +
        `local=${localBytes} missing=${missingBytes} percent=30.9 hydration=hydrating rate=190840832 eta=151 errors=2`,
    );
  });

  test("never hands the terminal what a name or a source says", () => {
    const status = cloneStatus();
    const [disk] = status.disks;
    const evil = {
      ...status,
      disks: [{ ...disk, name: 'a b"\n\u001b[2J', image: "\u001b]0;x\u0007" }],
    } as typeof status;
    expect(renderStatus(evil)).not.toMatch(/\p{Cc}(?<!\n)/u);
    expect(renderStatus(evil).split("\n")).toHaveLength(renderStatus(status).split("\n").length);
    expect(renderRawStatus(evil)).toContain('disk="a b\\"\\n\\u001b[2J" job=');
    expect(renderEvent({ event: "x\u001b", seq: 1, time: "t", why: "a\nb" })).toBe('t  x\\u001b  why="a\\nb"');
  });
});

describe("map", () => {
  test("puts runs together that the end of a page has cut", async () => {
    const cut = [
      { offset: 0, length: 5, type: 0 },
      { offset: 5, length: 5, type: 0 },
      { offset: 10, length: 1, type: 1 },
      { offset: 20, length: 1, type: 1 },
    ];
    const joined = [];
    for await (const run of joinRuns(cut)) joined.push(run);
    expect(joined).toEqual([{ offset: 0, length: 10, type: 0 }, cut[2], cut[3]]);
  });

  test("has nbdinfo's columns", () => {
    expect(mapColumns({ offset: 4096, length: 10481664, type: 1 })).toBe("      4096    10481664    1  missing");
    const totals = [
      { type: 0, size: 4096, percent: 0.0390625 },
      { type: 1, size: 10481664, percent: 99.9609375 },
    ];
    expect(renderTotals(totals, false)).toBe("      4096   0.0%   0 local\n  10481664 100.0%   1 missing\n");
    expect(JSON.parse(renderTotals(totals, true))[1]).toEqual({
      size: 10481664,
      percent: 99.9609,
      type: 1,
      description: "missing",
    });
  });
});

describe("values", () => {
  test.each([
    ["60s", 60_000],
    ["60", 60_000],
    ["250ms", 250],
    ["1.5h", 5_400_000],
    ["0", 0],
  ])("the duration %s is %d ms", (text, ms) => expect(parseDuration(text)).toBe(ms));

  test.each(["", "s", "-1s", "1 s", "1w", "1e9", "9999999999s"])("%j is no duration", (text) => {
    expect(() => parseDuration(text)).toThrow(/duration/i);
  });

  test("rates are sizes, or unlimited, and never nothing", () => {
    expect(parseRate("50M")).toBe(50 * 2 ** 20);
    expect(parseRate("50MiB/s")).toBe(50 * 2 ** 20);
    expect(parseRate("unlimited")).toBeNull();
    for (const text of ["0", "", "fast", "-1M"]) expect(() => parseRate(text)).toThrow(/size|rate of nothing/);
  });
});

describe("where control sockets are", () => {
  test("root has /run, others their own, and a variable goes first", () => {
    expect(runtimeDirectory({ XDG_RUNTIME_DIR: "/run/user/7" }, 0)).toBe("/run/blockferry");
    expect(runtimeDirectory({ XDG_RUNTIME_DIR: "/run/user/7" }, 7)).toBe("/run/user/7/blockferry");
    expect(runtimeDirectory({ XDG_RUNTIME_DIR: "relative" }, 7)).toBeUndefined();
    expect(runtimeDirectory({ BLOCKFERRY_RUNTIME_DIR: "/x" }, 0)).toBe("/x");
  });

  test("a runtime directory that is a link, a file, somebody else's or open to others is refused", () => {
    using folder = mkdtempDisposableSync(join(tmpdir(), "blockferry-runtime-"));
    const at = (name: string): string => join(folder.path, name);
    const uid = process.getuid?.() ?? 0;
    mkdirSync(at("good"), { mode: 0o700 });
    mkdirSync(at("open"));
    chmodSync(at("open"), 0o711);
    symlinkSync(at("good"), at("link"));
    writeFileSync(at("file"), "");
    expect(checkRuntimeDirectory(at("good"), uid)).toBe(true);
    expect(checkRuntimeDirectory(at("none"), uid)).toBe(false);
    expect(() => checkRuntimeDirectory(at("open"), uid)).toThrow(/mode 711/);
    expect(() => checkRuntimeDirectory(at("link"), uid)).toThrow(/symbolic link/);
    expect(() => checkRuntimeDirectory(at("file"), uid)).toThrow(/not a directory/);
    expect(() => checkRuntimeDirectory(at("good"), uid + 1)).toThrow(/another user/);
  });

  test("a socket's directory must exist, and nobody else may be able to replace what is in it", () => {
    using folder = mkdtempDisposableSync(join(tmpdir(), "blockferry-runtime-"));
    const uid = process.getuid?.() ?? 0;
    const place = (path: string): void => checkSocketPlace(path, uid);
    place(join(folder.path, "a.ctl"));
    place(join(tmpdir(), "a.ctl"));
    expect(() => place(join(folder.path, "none/a.ctl"))).toThrow(/does not exist/);
    expect(() => place(join(folder.path, "x".repeat(120)))).toThrow(/107 bytes/);
    chmodSync(folder.path, 0o777);
    expect(() => place(join(folder.path, "a.ctl"))).toThrow(CliError);
    expect(() => checkSocketPlace(join(folder.path, "a.ctl"), uid + 1)).toThrow(/others|another user/);
  });
});
