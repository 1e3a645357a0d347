/**
 * What a process did to make a file durable, as strace saw it: the fdatasyncs of one file with the times at which they
 * began and ended. Needs "strace". A traced call is in the file before the process goes on.
 */
import { readFileSync } from "node:fs";

export interface SyncCall {
  /** Calendar time, as `Date.now()` and Python's `time.time()` tell it. */
  readonly startMs: number;
  readonly endMs: number;
  /** "0", or "-1 EIO". */
  readonly result: string;
}

/**
 * The start of a command line that runs a program and traces it into `output`; `inject` as in `strace -e inject=…`. The
 * program has the PID of the whole command (`-D`), so that it gets the signals.
 */
export function straceSyncs(output: string, inject?: string): string[] {
  const what = ["-f", "-y", "-ttt", "-T", "-e", "trace=fdatasync,fsync", "-e", "signal=none"];
  return [
    "strace",
    "-D",
    "--seccomp-bpf",
    ...what,
    ...(inject === undefined ? [] : ["-e", `inject=${inject}`]),
    "-o",
    output,
  ];
}

/** The finished syncs of `path`, in the order of their ends. */
export function syncCalls(output: string, path: string): SyncCall[] {
  const unfinished = new Set<string>();
  const calls: SyncCall[] = [];
  for (const line of readFileSync(output, "utf8").split("\n")) {
    const [, thread = "", seconds = "", rest = ""] = /^(\d+) +(\d+\.\d+) (.*)$/.exec(line) ?? [];
    if (rest.includes("<unfinished")) {
      if (rest.includes(`<${path}>`)) unfinished.add(thread);
      continue;
    }
    const [, result, tookSeconds] = /= (0|-1 E[A-Z]+).*<(\d+\.\d+)>$/.exec(rest) ?? [];
    if (result === undefined) continue;
    const resumed = rest.startsWith("<...");
    if (resumed ? !unfinished.delete(thread) : !rest.includes(`<${path}>`)) continue;
    const [atMs, tookMs] = [Number(seconds) * 1000, Number(tookSeconds) * 1000];
    // A line of its own carries the time of the call; one that resumes, that of the return.
    calls.push(
      resumed ? { startMs: atMs - tookMs, endMs: atMs, result } : { startMs: atMs, endMs: atMs + tookMs, result },
    );
  }
  return calls;
}

/** The successful syncs that began and ended within a client's call. */
export function syncsDuring(
  calls: readonly SyncCall[],
  { startMs, endMs }: { startMs: number; endMs: number },
): SyncCall[] {
  return calls.filter((call) => call.result === "0" && call.startMs >= startMs && call.endMs <= endMs);
}
