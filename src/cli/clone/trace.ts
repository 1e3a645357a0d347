/** Access traces as files: one that is being recorded, and one whose order hydration follows. */
import { closeSync, openSync, readFileSync, writeSync } from "node:fs";
import type { Clock } from "../../env/clock.ts";
import { parseTrace, TraceError, TraceRecorder } from "../../stream/access-trace.ts";
import type { ByteRange } from "../../stream/order.ts";
import type { Cleanup } from "../cleanup.ts";
import { CliError } from "../cli-error.ts";
import { EXIT_IO } from "../exit-codes.ts";

const BUFFER_CHARS = 64 * 1024;

/** Begins the file anew; `cleanup` ends it. What a full disk does not take is left out. */
export function recordTrace(
  path: string,
  { clock, sizeBytes, cleanup }: { clock: Clock; sizeBytes: number; cleanup: Cleanup },
): TraceRecorder {
  let file: number;
  try {
    file = openSync(path, "w", 0o600);
  } catch (error) {
    const hint = "choose a file that can be written";
    const parts = {
      exitCode: EXIT_IO,
      code: "trace",
      what: `cannot record a trace in ${path}`,
      why: reason(error),
      hint,
    };
    throw new CliError(parts, { cause: error });
  }
  let lines: string[] = [];
  let chars = 0;
  const flush = (): void => {
    const text = lines.join("");
    [lines, chars] = [[], 0];
    try {
      writeSync(file, text);
    } catch {
      // A trace is for the next time; it must not stop this one.
    }
  };
  cleanup.defer(async () => {
    flush();
    closeSync(file);
  });
  return new TraceRecorder(clock, sizeBytes, (text) => {
    lines.push(text);
    chars += text.length;
    if (chars >= BUFFER_CHARS) flush();
  });
}

export function readTrace(path: string, sizeBytes: number): ByteRange[] {
  try {
    return parseTrace(readFileSync(path, "utf8"), sizeBytes);
  } catch (error) {
    const hint = error instanceof TraceError ? "record one with --record-trace" : "check the name of the file";
    const what = `cannot replay the trace ${path}`;
    throw new CliError({ exitCode: EXIT_IO, code: "trace", what, why: reason(error), hint }, { cause: error });
  }
}

function reason(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
