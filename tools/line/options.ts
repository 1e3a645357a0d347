/** The command line of a line. */
import { parseArgs } from "node:util";
import type { Address } from "../../src/env/links.ts";

export interface LineSettings {
  readonly listen: Address;
  readonly target: Address;
  readonly rttMs: number;
  /** Of each direction, for all its connections together. Infinity: no bottleneck. */
  readonly bitsPerSecond: number;
  /** What may wait before the bottleneck, in each direction. */
  readonly queueBytes: number;
  /** Commands are read from standard input; when it ends, the line does. */
  readonly control: boolean;
}

export class LineUsageError extends Error {
  override readonly name = "LineUsageError";
}

export const QUEUE_BYTES_DEFAULT = 256 * 1024;

export const USAGE = `usage: node tools/line/main.ts --listen ADDR --to ADDR [options]
  ADDR                   host:port or unix:/path
  --rtt 10ms             round-trip time, half each way (0)
  --bandwidth 1gbit      of each direction, shared by all connections (unlimited)
  --queue 256KiB         bytes that wait before the bottleneck, in each direction
  --control              line-delimited JSON commands on standard input (messages.ts); its end ends the line`;

const UNITS: Readonly<Record<string, Readonly<Record<string, number>>>> = {
  duration: { us: 0.001, ms: 1, s: 1000 },
  bandwidth: { bit: 1, kbit: 1e3, mbit: 1e6, gbit: 1e9 },
  size: { "": 1, B: 1, KiB: 2 ** 10, MiB: 2 ** 20, GiB: 2 ** 30 },
};

/** `10ms` → 10 (duration, ms), `1gbit` → 1e9 (bandwidth, bit/s), `256KiB` → 262144 (size, bytes). */
export function parseQuantity(kind: "duration" | "bandwidth" | "size", text: string): number {
  const units = UNITS[kind] ?? {};
  const [, digits = "", unit = ""] = /^(\d+(?:\.\d+)?)([A-Za-z]*)$/.exec(text) ?? [];
  const factor = Object.hasOwn(units, unit) ? units[unit] : undefined;
  if (digits === "" || factor === undefined) {
    const known = Object.keys(units).filter((name) => name !== "");
    throw new LineUsageError(`"${text}" is not a ${kind}: a number followed by ${known.join(", ")}`);
  }
  return Number(digits) * factor;
}

export function parseAddress(text: string): Address {
  if (text.startsWith("unix:") && text.length > 5) return { kind: "unix", path: text.slice(5) };
  const [, bracketed, plain, digits] = /^(?:\[([^\]]+)\]|([^:]+)):(\d+)$/.exec(text) ?? [];
  const host = bracketed ?? plain;
  if (host === undefined || Number(digits) > 65535) {
    throw new LineUsageError(`"${text}" is not an address: host:port or unix:/path`);
  }
  return { kind: "tcp", host, port: Number(digits) };
}

const FLAGS = {
  listen: { type: "string" },
  to: { type: "string" },
  rtt: { type: "string", default: "0ms" },
  bandwidth: { type: "string" },
  queue: { type: "string" },
  control: { type: "boolean", default: false },
} as const;

/** Throws `LineUsageError`. */
export function parseCommandLine(args: readonly string[]): LineSettings {
  const values = flagValues(args);
  if (values.listen === undefined || values.to === undefined) throw new LineUsageError("--listen and --to are needed");
  const bandwidth = values.bandwidth;
  const settings = {
    listen: parseAddress(values.listen),
    target: parseAddress(values.to),
    rttMs: parseQuantity("duration", values.rtt),
    bitsPerSecond: bandwidth === undefined ? Number.POSITIVE_INFINITY : parseQuantity("bandwidth", bandwidth),
    queueBytes: values.queue === undefined ? QUEUE_BYTES_DEFAULT : parseQuantity("size", values.queue),
    control: values.control,
  };
  if (settings.bitsPerSecond <= 0) throw new LineUsageError("--bandwidth must be above zero");
  if (settings.queueBytes < 1) throw new LineUsageError("--queue must be above zero");
  return settings;
}

function flagValues(args: readonly string[]) {
  try {
    return parseArgs({ args: [...args], options: FLAGS }).values;
  } catch (error) {
    throw new LineUsageError((error as Error).message);
  }
}
