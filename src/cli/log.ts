/**
 * The log on stderr: one JSON object a line, or on a terminal one readable line. What a client may have influenced is
 * data in fields, and control characters leave us escaped in either form.
 */
import { type DestinationStream, destination, type Logger, pino } from "pino";
import { printable } from "./printable.ts";

export const LOG_LEVELS = ["silent", "error", "warn", "info", "debug"] as const;
export type LogLevel = (typeof LOG_LEVELS)[number];
export type LogFormat = "json" | "text";

export type LogFields = Readonly<Record<string, unknown>>;

/** Fits `ServerLog`, and whatever else wants to be told where to write. */
export interface Log {
  debug(message: string, fields?: LogFields): void;
  info(message: string, fields?: LogFields): void;
  warn(message: string, fields?: LogFields): void;
  error(message: string, fields?: LogFields): void;
  /** Says nothing more: for a process that leaves its terminal and has no log file. */
  silence(): void;
}

export interface LogOptions {
  readonly level: LogLevel;
  readonly format: LogFormat;
  /** A file descriptor, or a path to append to. */
  readonly to: number | string;
}

export function createLog(options: LogOptions): Log {
  const output = openOutput(options.to);
  const { format } = options;
  const logger = pino(
    {
      level: options.level,
      timestamp: () => `,"time":"${new Date().toISOString()}"`,
      formatters: { level: (label) => ({ level: label }) },
      base: { pid: process.pid },
    },
    {
      write: (line: string) => output.write(`${format === "json" ? printable(line.trimEnd()) : readableLine(line)}\n`),
    },
  );
  return {
    debug: (message, fields) => emit(logger, "debug", message, fields),
    info: (message, fields) => emit(logger, "info", message, fields),
    warn: (message, fields) => emit(logger, "warn", message, fields),
    error: (message, fields) => emit(logger, "error", message, fields),
    silence: () => {
      logger.level = "silent";
    },
  };
}

function emit(logger: Logger, level: Exclude<LogLevel, "silent">, message: string, fields: LogFields = {}): void {
  logger[level](fields, message);
}

function openOutput(to: number | string): DestinationStream {
  const output = destination({ dest: to, sync: true, mode: 0o600 });
  // A reader of our log that is gone, or a full disk, must not end the server.
  output.on("error", () => {});
  return output;
}

/** `12:34:56 warn  closing a connection  peer=10.0.0.7:4711 why="…"` */
export function readableLine(line: string): string {
  const { level, time, pid: _, msg, ...fields } = JSON.parse(line) as Record<string, unknown>;
  const pairs = Object.entries(fields).map(([key, value]) => `${key}=${readableValue(value)}`);
  const clock = String(time).slice(11, 19);
  const text = [`${clock} ${String(level).padEnd(5)} ${String(msg)}`, ...pairs].join("  ");
  return printable(text);
}

function readableValue(value: unknown): string {
  return typeof value === "string" && /^[\w./:@+-]+$/.test(value) ? value : JSON.stringify(value);
}
