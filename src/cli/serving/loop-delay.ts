/**
 * How late the event loop was, for tests and benchmarks: with `BLOCKFERRY_TRACE_LOOP_DELAY=FILE`, the file gets
 * `{"p50Ms":…,"p99Ms":…,"maxMs":…}` at exit. The histogram counts the whole time from start to exit.
 */
import { writeFileSync } from "node:fs";
import { monitorEventLoopDelay } from "node:perf_hooks";

const RESOLUTION_MS = 1;
const NS_PER_MS = 1e6;

export function traceLoopDelay(file: string | undefined): void {
  if (file === undefined || file === "") return;
  const histogram = monitorEventLoopDelay({ resolution: RESOLUTION_MS });
  histogram.enable();
  process.on("exit", () => {
    histogram.disable();
    const ms = (ns: number): number => Math.round(ns / 1000) / (NS_PER_MS / 1000);
    const report = {
      p50Ms: ms(histogram.percentile(50)),
      p99Ms: ms(histogram.percentile(99)),
      maxMs: ms(histogram.max),
    };
    writeFileSync(file, `${JSON.stringify(report)}\n`);
  });
}
