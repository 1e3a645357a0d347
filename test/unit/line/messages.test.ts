import { expect, test } from "vitest";
import { Histogram } from "../../../tools/line/histogram.ts";
import { parseCommand } from "../../../tools/line/messages.ts";
import { parseAddress, parseCommandLine, parseQuantity } from "../../../tools/line/options.ts";

test.each([
  { set: { rttMs: 10, bitsPerSecond: null } },
  { set: { queueBytes: 4096 } },
  { cutNow: "rst" },
  { cutAt: null },
  { cutAt: { direction: "up", afterBytes: 0, from: "now", how: "fin", every: false } },
  { stall: "both" },
  { lose: "down" },
  { resume: true },
  { refuse: false },
  { stats: true, reset: true },
])("a line understands %j", (command) => {
  expect(parseCommand(JSON.stringify(command))).toEqual(command);
});

test.each([
  ["", "not JSON"],
  ["[]", /an object|one of/],
  ["{}", /^a command has one of .*, not ""$/],
  ['{"constructor":true}', 'not "constructor"'],
  ['{"set":{"rttMs":-1}}', '"set" cannot be'],
  ['{"set":{"bitsPerSecond":0}}', '"set" cannot be'],
  ['{"set":{"queueBytes":0}}', '"set" cannot be'],
  ['{"set":{"rtt":1}}', '"set" cannot be'],
  [
    '{"cutAt":{"direction":"up","afterBytes":1.5,"from":"now","how":"fin","every":false}}',
    '"cutAt" cannot be {"direction":"up","afterBytes":1.5',
  ],
  ['{"cutAt":{"direction":"up","afterBytes":1,"how":"fin","every":false}}', '"cutAt" cannot be'],
  ['{"stall":"sideways"}', '"stall" cannot be "sideways"'],
  ['{"lose":"both"}', '"lose" cannot be "both"'],
  ['{"resume":true,"refuse":true}', 'not "resume, refuse"'],
  ['{"resume":true,"reset":true}', '"reset" is a boolean and goes with "stats"'],
])("a line objects to %s", (text, why) => {
  expect(() => parseCommand(text)).toThrow(why);
});

test("quantities have units, and others are refused", () => {
  expect(parseQuantity("duration", "1.5ms")).toBe(1.5);
  expect(parseQuantity("bandwidth", "1gbit")).toBe(1e9);
  expect(parseQuantity("size", "256KiB")).toBe(262_144);
  expect(() => parseQuantity("duration", "10")).toThrow("not a duration");
  expect(() => parseQuantity("size", "1GB")).toThrow("not a size");
});

test("addresses are TCP, with IPv6 in brackets, or unix paths", () => {
  expect(parseAddress("[::1]:80")).toEqual({ kind: "tcp", host: "::1", port: 80 });
  expect(parseAddress("unix:/a:1")).toEqual({ kind: "unix", path: "/a:1" });
  expect(() => parseAddress("localhost")).toThrow("not an address");
  expect(() => parseAddress("h:65536")).toThrow("not an address");
});

test("a command line without an address, or with a bandwidth of zero, is refused", () => {
  expect(() => parseCommandLine(["--listen", "h:1"])).toThrow("--to");
  expect(() => parseCommandLine(["--listen", "h:1", "--to", "h:2", "--bandwidth", "0bit"])).toThrow("above zero");
});

test("quantiles are within 5 %, the maximum is exact, and a reset forgets", () => {
  const histogram = new Histogram();
  for (let ms = 1; ms <= 1000; ms++) histogram.add(ms, 3);
  const { p50, p99, max, mean } = histogram.quantiles();
  expect(Math.abs(p50 / 500 - 1)).toBeLessThan(0.05);
  expect(Math.abs(p99 / 990 - 1)).toBeLessThan(0.05);
  expect(max).toBe(1000);
  expect(mean).toBeCloseTo(500.5);
  histogram.reset();
  expect(histogram.quantiles()).toEqual({ p50: 0, p99: 0, max: 0, mean: 0 });
});
