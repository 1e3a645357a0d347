import { readFileSync } from "node:fs";
import { describe, expect, test } from "vitest";
import { type FioRun, fioArguments, nbdUri, parseLatencyLog } from "../../../bench/lib/fio.ts";
import { isClientBound, parseFioReport } from "../../../bench/lib/fio-report.ts";

const text = readFileSync(new URL("fio-report.json", import.meta.url), "utf8");

type Fixture = { jobs: Record<string, unknown>[] };
const changed = (change: (fixture: Fixture) => void): string => {
  const fixture = JSON.parse(text) as Fixture;
  change(fixture);
  return JSON.stringify(fixture);
};

describe("fio's report", () => {
  test("gives rates, latencies and CPU time of each job", () => {
    const [read, flush] = parseFioReport(text);
    const latency = {
      meanUs: expect.closeTo(946.045),
      p50Us: 913.408,
      p99Us: 2211.84,
      p999Us: 4554.752,
      maxUs: 5916.566,
    };
    const main = { count: 16512, perSecond: 32958.083832, bytesPerSecond: 135249756, latency };
    expect(read).toMatchObject({ name: "read", error: 0, main, flushes: { count: 0 } });
    expect(read?.clientCores).toBeCloseTo(0.314);
    expect(flush).toMatchObject({
      ...{ name: "flush", error: 0, main: { count: 12, latency: { p50Us: 57.088 } } },
      flushes: { count: 11, latency: { p50Us: 382.976, maxUs: 4353.194 } },
    });
  });

  test("tells how many requests were in flight", () => {
    expect(parseFioReport(text)[0]?.effectiveDepth).toBeCloseTo(32, 0);
  });

  test("may come after lines of fio's own", () => {
    expect(parseFioReport(`fio: connected to NBD server\n${text}`)).toEqual(parseFioReport(text));
  });

  test("keeps the error of a job that had one", () => {
    const failed = changed(({ jobs }) => {
      if (jobs[0]) jobs[0]["error"] = 5;
    });
    expect(parseFioReport(failed)[0]?.error).toBe(5);
  });

  test("is refused when it is none, or lacks what is needed", () => {
    expect(() => parseFioReport("fio: nbd_connect_uri: No such file\n")).toThrow(/no JSON/);
    expect(() => parseFioReport("{}")).toThrow(/no jobs/);
    const lacking = changed(({ jobs }) => {
      if (jobs[0]) delete jobs[0]["usr_cpu"];
    });
    expect(() => parseFioReport(lacking)).toThrow(/usr_cpu/);
  });

  test("shows when fio's own thread was the bottleneck", () => {
    const busy = changed(({ jobs }) => {
      if (jobs[0]) Object.assign(jobs[0], { usr_cpu: 40.5, sys_cpu: 55 });
    });
    const [job] = parseFioReport(busy);
    expect(job?.clientCores).toBeCloseTo(0.955);
    expect(parseFioReport(busy).map(isClientBound)).toEqual([true, false]);
  });
});

test("fio's latency log gives every latency in µs, in order", () => {
  expect(parseLatencyLog("0, 12500, 0, 4096, 8192, 0\n1, 900, 0, 4096, 0, 0\n")).toEqual([12.5, 0.9]);
});

describe("fio's arguments", () => {
  const run: FioRun = {
    ...{ socketPath: "/tmp/s", directory: "/tmp", rampMs: 1000, measureMs: 4000 },
    jobs: [
      { name: "one", rw: "randread", blockBytes: 4096, depth: 32, sizeBytes: 1 << 20, keepLatencies: true },
      { name: "two", rw: "write", blockBytes: 4096, depth: 1, offset: 8192, options: { fsync: 1 } },
    ],
  };

  test("begin each job with its name, and repeat what all have in common", () => {
    const words = fioArguments(run, "/tmp/f");
    const second = words.indexOf("--name=two");
    expect(words[0]).toBe("--name=one");
    for (const job of [words.slice(0, second), words.slice(second)]) {
      expect(job).toEqual(
        expect.arrayContaining([
          "--ioengine=nbd",
          "--uri=nbd+unix:///?socket=/tmp/s",
          "--time_based=1",
          "--runtime=4000ms",
          "--ramp_time=1000ms",
        ]),
      );
    }
    expect(words.slice(0, second)).toEqual(
      expect.arrayContaining(["--iodepth=32", "--size=1048576", "--write_lat_log=/tmp/f/one"]),
    );
    expect(words.slice(second)).toEqual(expect.arrayContaining(["--iodepth=1", "--offset=8192", "--fsync=1"]));
    expect(words.slice(second).join(" ")).not.toMatch(/--size|lat_log/);
  });

  test("encode the export's name", () => {
    expect(nbdUri("/run/s", "a b/c")).toBe("nbd+unix:///a%20b%2Fc?socket=/run/s");
  });
});
