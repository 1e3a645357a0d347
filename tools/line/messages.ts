/** What goes over the control channel, one JSON object a line: commands to a line, and what it says. */
import type { CutAt, CutHow, Direction } from "./faults.ts";
import type { Quantiles } from "./histogram.ts";

export type Way = Direction | "both";

/** What can be changed at run time; what is missing stays. */
export interface Change {
  readonly rttMs?: number;
  /** Of each direction. null: unlimited. */
  readonly bitsPerSecond?: number | null;
  readonly queueBytes?: number;
}

/** One command a message; each is answered by one message, in order. */
export type Command =
  | { readonly set: Change }
  /** Cuts every connection at once; what is under way is lost. */
  | { readonly cutNow: CutHow }
  /** Plans a cut; null: none any more. */
  | { readonly cutAt: CutAt | null }
  /** Freezes what is under way; nothing is lost, `resume` goes on. Senders are held back once the queue is full. */
  | { readonly stall: Way }
  /** What arrives in the direction is accepted and never delivered. */
  | { readonly lose: Direction }
  /** Ends stall and loss. Connections that lost bytes deliver nothing more in that direction: the stream has a hole. */
  | { readonly resume: true }
  /** Whether new connections are refused. */
  | { readonly refuse: boolean }
  | { readonly stats: true /** Counts and histograms begin anew. */; readonly reset?: boolean };

export interface LaneStats {
  /** Bytes that senders handed to the line. */
  readonly acceptedBytes: number;
  readonly deliveredBytes: number;
  /** Accepted and never delivered: swallowed by loss, or under way when a connection was cut. */
  readonly lostBytes: number;
  /** Bytes waiting before the bottleneck now, and at most. */
  readonly queuedBytes: number;
  readonly queuedBytesPeak: number;
  /** From being read to being handed to the receiver's socket, without propagation; each byte counts. */
  readonly residenceMs: Quantiles;
  /** By how much the line itself was late, part of `residenceMs`; each packet counts. */
  readonly latenessMs: Quantiles;
}

export interface Stats {
  readonly up: LaneStats;
  readonly down: LaneStats;
  readonly connections: { readonly open: number; readonly made: number; readonly cut: number };
  /** Connections that the target could not be dialled for. */
  readonly dialFailures: number;
  /** CPU time of the process since it began. */
  readonly cpuMs: number;
  readonly rttMs: number;
  /** null: unlimited. */
  readonly bitsPerSecond: number | null;
  readonly queueBytes: number;
}

export type Answer =
  | { readonly ready: string /** False: waking up is only exact to a millisecond. */; readonly fineTimer: boolean }
  | { readonly ok: true }
  | { readonly stats: Stats }
  | { readonly error: string };

/** Throws an Error that says what is wrong with the message. */
export function parseCommand(text: string): Command {
  let message: unknown;
  try {
    message = JSON.parse(text);
  } catch {
    throw new Error("not JSON");
  }
  if (!isObject(message)) throw new Error("a command is an object");
  const verbs = Object.keys(message).filter((key) => key !== "reset");
  const name = verbs[0] ?? "";
  const check = Object.hasOwn(CHECKS, name) ? CHECKS[name] : undefined;
  if (verbs.length !== 1 || check === undefined) {
    throw new Error(`a command has one of ${Object.keys(CHECKS).join(", ")}, not "${verbs.join(", ")}"`);
  }
  if (!check(message[name])) throw new Error(`"${name}" cannot be ${JSON.stringify(message[name])}`);
  if (message["reset"] !== undefined && (name !== "stats" || typeof message["reset"] !== "boolean")) {
    throw new Error('"reset" is a boolean and goes with "stats"');
  }
  return message as unknown as Command;
}

type Check = (value: unknown) => boolean;

const isObject = (value: unknown): value is Record<string, unknown> =>
  typeof value === "object" && value !== null && !Array.isArray(value);
const isDirection: Check = (value) => value === "up" || value === "down";
const isHow: Check = (value) => value === "rst" || value === "fin";
const isTrue: Check = (value) => value === true;
const isOffset: Check = (value) => Number.isSafeInteger(value) && (value as number) >= 0;
const isSize: Check = (value) => isOffset(value) && value !== 0;
const isDuration: Check = (value) => Number.isFinite(value) && (value as number) >= 0;
const isBandwidth: Check = (value) => value === null || (Number.isFinite(value) && (value as number) > 0);
const isBoolean: Check = (value) => typeof value === "boolean";
const isFrom: Check = (value) => value === "now" || value === "start";

/** An object with these members and no others; a name ending in `?` may be missing. */
function shape(members: Readonly<Record<string, Check>>): Check {
  const known = Object.entries(members).map(([name, check]) => [name.replace("?", ""), check, name] as const);
  return (value) =>
    isObject(value) &&
    Object.keys(value).every((key) => known.some(([name]) => name === key)) &&
    known.every(([name, check, spelt]) => (spelt !== name && value[name] === undefined) || check(value[name]));
}

const isCutAt = shape({ direction: isDirection, afterBytes: isOffset, from: isFrom, how: isHow, every: isBoolean });

const CHECKS: Readonly<Record<string, Check>> = {
  set: shape({ "rttMs?": isDuration, "bitsPerSecond?": isBandwidth, "queueBytes?": isSize }),
  cutNow: isHow,
  cutAt: (value) => value === null || isCutAt(value),
  stall: (value) => value === "both" || isDirection(value),
  lose: isDirection,
  resume: isTrue,
  refuse: isBoolean,
  stats: isTrue,
};
