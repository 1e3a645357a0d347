/** `blockferry top`: which instances it watches, what it learns of them, and what it shows. */
import { describe, expect, test } from "vitest";
import { Fleet } from "../../../src/cli/top/fleet.ts";
import { milliseconds, renderJson, renderPlain, renderScreen } from "../../../src/cli/top/view.ts";
import { ANSWER_MS_MAX, type InstanceView } from "../../../src/cli/top/watched.ts";
import type { DiskStatus, Status } from "../../../src/control/status.ts";
import { VERBS } from "../../../src/control/verbs.ts";
import { FileError } from "../../../src/env/files.ts";
import { streamPair } from "../../support/stream-pair.ts";
import { ControlRig, settle } from "../control/rig.ts";

const MiB = 2 ** 20;
const WALL_MS = Date.UTC(2026, 0, 2, 3, 4, 5);
const SCREEN = { columns: 100, rows: 40, wallMs: WALL_MS };

const disk: DiskStatus = {
  ...{ name: "vda", image: "/vm/vda.raw", format: "raw", readOnly: false, sizeBytes: 400 * MiB, clusterBytes: 4096 },
  ...{ localBytes: 100 * MiB, missingBytes: 300 * MiB, state: "running" },
  hydration: {
    ...{ state: "hydrating", rateBytesPerSecond: 50 * MiB, rateLimitBytesPerSecond: null, etaSeconds: 6 },
    ...{ elapsedSeconds: 2, stalledReason: null, fetchedBytes: 100 * MiB, zeroBytes: 0, errors: [], errorsTotal: 0 },
    ...{ windowBytes: 8 * MiB, rttSeconds: 0.0123, minRttSeconds: 0.0118 },
  },
  stalls: { count: 12, totalSeconds: 3.21, p50Seconds: 0.0004, p99Seconds: 0.13, maxSeconds: 1.2 },
  source: { uri: "nbd://a/vda", state: "connected", since: "2026-01-02T03:00:00.000Z", reconnects: 2, lastError: null },
};

const status: Status = {
  ...{ program: "blockferry", version: "1.2.3", pid: 4711, role: "clone", state: "running", uptimeSeconds: 61 },
  ...{ startedAt: "2026-01-02T03:03:04.000Z", reached: ["listening"], clients: 1, uris: [], next: null },
  disks: [disk],
};

const running: InstanceView = { control: "/run/a.ctl", ended: false, status };
const silent: InstanceView = { control: "/run/b.ctl", ended: false, trouble: "it does not answer" };

const textOf = (views: readonly InstanceView[], screen = SCREEN): string[] =>
  renderScreen(views, screen).map(({ text }) => text);

describe("the live view", () => {
  test("has what an operator asks: what, how far, how fast, how long guests waited, window and source", () => {
    expect(textOf([running, silent])).toEqual([
      "blockferry top   2 instances   03:04:05 UTC   q ends",
      "",
      "clone 4711: running, 1 client, up 0:01:01",
      "  vda: running  /vm/vda.raw  (raw, 400 MiB)",
      `  [${"#".repeat(11)}${"-".repeat(33)}]  100 MiB / 400 MiB  25.0%  50.0 MiB/s  ETA 0:00:06`,
      "  stream     window 8.0 MiB, round trip 12.3 ms (least 11.8 ms), no limit",
      "  guests     waited 12 times: p50 0.40 ms, p99 130.0 ms, max 1.20 s, 3.2 s in all",
      "  source     connected, 2 reconnects  nbd://a/vda",
      "",
      "/run/b.ctl: it does not answer",
    ]);
  });

  test("says why the source is away, what happened last, and what to do next", () => {
    const source = { ...disk.source, state: "disconnected", lastError: "connection refused" } as DiskStatus["source"];
    const lastEvent = { event: "source-disconnected", seq: 3, time: "2026-01-02T03:04:00.000Z", why: "refused" };
    const away: Status = { ...status, state: "stalled", next: "bring the source back", disks: [{ ...disk, source }] };
    const lines = renderScreen([{ ...running, status: away, lastEvent }], SCREEN);
    expect(lines).toContainEqual({
      text: "  source     disconnected, 2 reconnects  nbd://a/vda: connection refused",
      mood: "warning",
    });
    expect(lines.at(-2)?.text).toBe("  last       2026-01-02T03:04:00.000Z  source-disconnected  why=refused");
    expect(lines.at(-1)).toEqual({ text: "  next       bring the source back", mood: "warning" });
    expect(lines.find(({ text }) => text.includes("ETA"))?.mood).toBe("warning");
  });

  test("fits the terminal, however small, and says what it left out", () => {
    const views = Array.from({ length: 9 }, (_, n) => ({ ...running, control: `/run/${n}.ctl` }));
    for (const [columns, rows] of [
      [40, 24],
      [20, 5],
      [1, 1],
    ] as const) {
      const lines = textOf(views, { ...SCREEN, columns, rows });
      expect(lines.length).toBe(rows);
      expect(Math.max(...lines.map(({ length }) => length))).toBeLessThan(columns);
    }
    expect(textOf(views, { ...SCREEN, rows: 10 }).at(-1)).toMatch(/^… 55 more lines/);
  });

  test("shows control characters, which a name may have, rather than obey them", () => {
    const odd = { ...status, disks: [{ ...disk, name: "\u001b[2J", image: "/\u0007" }] };
    const shown = [...textOf([{ ...running, status: odd }]), ...renderPlain([{ ...running, status: odd }])].join("");
    expect(shown).toContain("\\u001b[2J");
    // biome-ignore lint/suspicious/noControlCharactersInRegex: the absence of control characters is the point
    expect(shown).not.toMatch(/[\u0000-\u001f]/);
  });
});

test("a line for every disk, or for an instance that has none or does not answer", () => {
  const lines = renderPlain([running, { ...running, status: { ...status, disks: [] } }, silent]);
  expect(lines).toEqual([
    "clone 4711  vda  running  100 MiB / 400 MiB  25.0%  50.0 MiB/s  ETA 0:00:06  window 8.0 MiB, round trip 12.3 ms " +
      "(least 11.8 ms), no limit  guests waited 12 times: p50 0.40 ms, p99 130.0 ms, max 1.20 s, 3.2 s in all  " +
      "source connected",
    "clone 4711  running",
    "/run/b.ctl: it does not answer",
  ]);
});

test("an object has the whole status of each, or why there is none", () => {
  expect(JSON.parse(renderJson([running, silent], WALL_MS))).toEqual({
    time: "2026-01-02T03:04:05.000Z",
    instances: [
      { control: "/run/a.ctl", ended: false, status, trouble: null },
      { control: "/run/b.ctl", ended: false, status: null, trouble: "it does not answer" },
    ],
  });
});

test.each([
  [0.00025, "0.25 ms"],
  [0.0123, "12.3 ms"],
  [1.2, "1.20 s"],
])("%d seconds are %s", (seconds, text) => expect(milliseconds(seconds)).toBe(text));

/** Instances by the path of their socket; those that are not there refuse. */
class Host {
  readonly rigs = new Map<string, ControlRig>();
  readonly clock = new ControlRig().clock;
  happened = 0;

  start(path: string): ControlRig {
    const rig = new ControlRig();
    rig.registry.register("status", VERBS.status, () => status);
    this.rigs.set(path, rig);
    return rig;
  }

  fleet(named?: readonly string[]): Fleet {
    return new Fleet({
      named,
      discover: () => [...this.rigs.keys()].sort(),
      clock: this.clock,
      onEvent: () => {
        this.happened += 1;
      },
      dial: async (path) => {
        const rig = this.rigs.get(path);
        if (rig === undefined) throw new FileError("ENOENT", `${path} is not there`);
        const { client, server } = streamPair();
        rig.server.accept(server);
        return client;
      },
    });
  }
}

describe("a fleet", () => {
  test("that was not named is whatever runs: new instances appear, ended ones are gone", async () => {
    const host = new Host();
    using fleet = host.fleet();
    expect(await fleet.refresh()).toEqual([]);
    const first = host.start("/run/a.ctl");
    expect(await fleet.refresh()).toMatchObject([{ control: "/run/a.ctl", ended: false, status: { pid: 4711 } }]);
    host.start("/run/b.ctl");
    expect((await fleet.refresh()).map(({ control }) => control)).toEqual(["/run/a.ctl", "/run/b.ctl"]);
    host.rigs.delete("/run/a.ctl");
    await first.server.close();
    expect((await fleet.refresh()).map(({ control }) => control)).toEqual(["/run/b.ctl"]);
  });

  test("that was named stays, and tells of those that have ended, and of one that is back", async () => {
    const host = new Host();
    const rig = host.start("/run/a.ctl");
    using fleet = host.fleet(["/run/a.ctl", "/run/never.ctl"]);
    expect(await fleet.refresh()).toMatchObject([{ ended: false }, { ended: true, trouble: "it has ended" }]);
    host.rigs.delete("/run/a.ctl");
    await rig.server.close();
    await settle();
    expect(host.happened).toBe(1);
    expect(await fleet.refresh()).toMatchObject([{ ended: true }, { ended: true }]);
    expect((await fleet.refresh())[0]).not.toHaveProperty("status");
    host.start("/run/a.ctl");
    expect(await fleet.refresh()).toMatchObject([{ ended: false, status: { pid: 4711 } }, { ended: true }]);
  });

  test("is told of events as they happen, and asks each instance over one connection", async () => {
    const host = new Host();
    const rig = host.start("/run/a.ctl");
    using fleet = host.fleet();
    await fleet.refresh();
    rig.events.publish("hydration-paused", { missingBytes: 1 });
    await settle();
    expect(host.happened).toBe(1);
    const [view] = await fleet.refresh();
    expect(view?.lastEvent).toMatchObject({ event: "hydration-paused", missingBytes: 1 });
    expect(rig.server.connections).toBe(1);
  });

  test("does not wait for ever for an instance that is stuck, and finds it again when it is not", async () => {
    const host = new Host();
    const stuck = Promise.withResolvers<Status>();
    let answer: () => Status | Promise<Status> = () => stuck.promise;
    const rig = new ControlRig();
    rig.registry.register("status", VERBS.status, () => answer());
    host.rigs.set("/run/a.ctl", rig);
    using fleet = host.fleet(["/run/a.ctl"]);
    const refresh = fleet.refresh();
    await settle();
    host.clock.advance(ANSWER_MS_MAX);
    expect(await refresh).toMatchObject([{ ended: false, trouble: "it does not answer" }]);
    answer = () => status;
    expect(await fleet.refresh()).toMatchObject([{ ended: false, status: { pid: 4711 } }]);
    stuck.resolve(status);
    await settle();
  });
});
