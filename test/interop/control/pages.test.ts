/** The verbs that an instance with missing blocks answers, through `openControl` and the real command line. */
import { chmodSync, existsSync, mkdirSync } from "node:fs";
import { afterAll, afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import { type OpenControl, openControl } from "../../../src/cli/instance/open-control.ts";
import { ControlError } from "../../../src/control/errors.ts";
import { EventHub } from "../../../src/control/event-hub.ts";
import { Milestones } from "../../../src/control/milestones.ts";
import { chooseDisk, registerPages } from "../../../src/control/pages.ts";
import { VerbRegistry } from "../../../src/control/registry.ts";
import { VERBS } from "../../../src/control/verbs.ts";
import { realClock } from "../../../src/os/clock.ts";
import { BLOCKFERRY, expectError, makeFolder, type Outcome, Running } from "../cli/harness.ts";

const folder = makeFolder();
afterAll(() => folder[Symbol.dispose]());

const CLUSTER = 4096;
/** More than one page, and no whole number of them. */
const RUNS = 12_345;

/** Every other cluster is missing. */
const striped = {
  name: "vda",
  sizeBytes: 2 * RUNS * CLUSTER + 512,
  *missing(offset: number) {
    for (let run = Math.floor(offset / (2 * CLUSTER)); run < RUNS; run++) {
      const at = (2 * run + 1) * CLUSTER;
      if (at + CLUSTER > offset) yield { offset: at, length: CLUSTER };
    }
  },
};

const empty = { name: "vdb", sizeBytes: CLUSTER, *missing() {} };

let control: OpenControl;
let milestones: Milestones;
let asked: unknown[];
const directory = folder.at("run");

beforeEach(async () => {
  vi.stubEnv("BLOCKFERRY_RUNTIME_DIR", directory);
  asked = [];
  const registry = new VerbRegistry();
  const events = new EventHub(realClock);
  milestones = new Milestones({ clock: realClock, possible: ["listening", "hydrated"], events });
  milestones.registerVerbs(registry);
  const disks = [striped, empty];
  registerPages(registry, disks);
  registry.register("pause", VERBS.pause, ({ disk }) => {
    asked.push(["pause", chooseDisk(disks, disk).name]);
    return {};
  });
  registry.register("resume", VERBS.resume, () => {
    throw new ControlError("unavailable", "the source is away", "bring it back");
  });
  registry.register("set-speed", VERBS["set-speed"], async ({ disk, bytesPerSecond }) => {
    asked.push(["set-speed", disk, bytesPerSecond]);
    return { bytesPerSecond };
  });
  const identity = { program: "blockferry", programVersion: "0", pid: process.pid, role: "clone" };
  const log = { warn: () => {}, error: () => {} };
  control = await openControl({ name: "vda/../x", registry, identity, clock: realClock, log });
});

afterEach(async () => {
  await control.close();
  vi.unstubAllEnvs();
});

async function verb(...args: string[]): Promise<Outcome> {
  await using running = new Running(BLOCKFERRY, args, { BLOCKFERRY_RUNTIME_DIR: directory });
  return await running.ended;
}

describe("where an instance puts its socket by itself", () => {
  test("is a directory that only we can enter, under a name that is a name; it is gone at the end", async () => {
    expect(control.path).toBe(folder.at(`run/clone-vda_.._x-${process.pid}.ctl`));
    await control.close();
    expect(existsSync(control.path)).toBe(false);
  });

  test("is not one that others can enter", async () => {
    mkdirSync(folder.at("shared"));
    chmodSync(folder.at("shared"), 0o755);
    vi.stubEnv("BLOCKFERRY_RUNTIME_DIR", folder.at("shared"));
    const identity = { program: "blockferry", programVersion: "0", pid: 1, role: "clone" };
    const log = { warn: () => {}, error: () => {} };
    const opening = openControl({ registry: new VerbRegistry(), identity, clock: realClock, log });
    await expect(opening).rejects.toThrow(/others may use it/);
  });
});

describe("map and missing", () => {
  test("list everything, over all pages, once", async () => {
    const { code, stdout } = await verb("map", "--disk", "vda", "--json");
    expect(code).toBe(0);
    const runs = JSON.parse(stdout) as { offset: number; length: number; type: number }[];
    expect(runs).toHaveLength(2 * RUNS + 1);
    expect(runs.every(({ offset, type }, index) => offset === index * CLUSTER && type === index % 2)).toBe(true);
    expect(runs.at(-1)).toEqual({ offset: 2 * RUNS * CLUSTER, length: 512, type: 0, description: "local" });
    const missing = await verb("missing", "--disk", "vda");
    expect(missing.stdout.split("\n")).toHaveLength(RUNS + 1);
    expect(missing.stdout.split("\n").slice(0, 2)).toEqual(["      4096        4096", "     12288        4096"]);
  });

  test("add up", async () => {
    const { stdout } = await verb("map", "--disk", "vda", "--totals");
    expect(stdout).toBe("  50565632  50.0%   0 local\n  50565120  50.0%   1 missing\n");
  });

  test("say of a disk that is all here that nothing is missing", async () => {
    expect(await verb("missing", "--disk", "vdb", "--json")).toMatchObject({ code: 0, stdout: "[]\n" });
    expect(await verb("missing", "--disk", "vdb")).toMatchObject({ code: 0, stdout: "" });
    expect((await verb("map", "--disk", "vdb")).stdout).toBe("         0        4096    0  local\n");
    expectError(await verb("map"), 64, /which disk is meant[\s\S]*"vda", "vdb"/);
  });

  test("end quietly when the reader leaves", async () => {
    const line = `${BLOCKFERRY} map --disk vda | head -n 1`;
    await using piped = new Running("/bin/sh", ["-c", line], { BLOCKFERRY_RUNTIME_DIR: directory });
    expect(await piped.ended).toEqual({ code: 0, stdout: "         0        4096    0  local\n", stderr: "" });
  });
});

describe("orders", () => {
  test("arrive with their parameters, and a refusal comes back with its hint", async () => {
    expect(await verb("pause", "--disk", "vdb")).toEqual({ code: 0, stdout: "", stderr: "" });
    expect(await verb("set-speed", "50M", "--json")).toMatchObject({ stdout: '{"bytesPerSecond":52428800}\n' });
    expect((await verb("set-speed", "unlimited", "--disk=vda")).code).toBe(0);
    expect(asked).toEqual([
      ["pause", "vdb"],
      ["set-speed", undefined, 52428800],
      ["set-speed", "vda", null],
    ]);
    expectError(await verb("resume"), 1, /the source is away[\s\S]*bring it back/);
    expectError(await verb("set-speed", "0"), 64, /blockferry pause/);
  });

  test("wait returns when it is reached, and says no when the instance ends before", async () => {
    const hydrated = verb("wait", "--for=hydrated", "--timeout=20s");
    milestones.reach("hydrated");
    expect((await hydrated).code).toBe(0);
    await using waiting = new Running(BLOCKFERRY, ["wait", "--for=listening", "--timeout=500ms"], {
      BLOCKFERRY_RUNTIME_DIR: directory,
    });
    expectError(await waiting.ended, 2, /the time is up/);
  });
});
