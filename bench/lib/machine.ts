/** The machine a result was got on, and what else ran on it in the meantime. Linux's /proc only. */
import { readFileSync, statfsSync } from "node:fs";
import { availableParallelism, cpus, loadavg, release, totalmem } from "node:os";

/** USER_HZ: the unit of every CPU time in /proc, fixed at 100 on all of Linux's common architectures. */
export const TICKS_PER_SECOND = 100;

export interface Machine {
  readonly cpu: string;
  readonly cores: number;
  readonly memoryBytes: number;
  readonly kernel: string;
  /** Of the folder that the test files are in. */
  readonly fileSystem: string;
  readonly node: string;
}

const FILE_SYSTEMS: Readonly<Record<number, string>> = {
  61267: "ext4",
  1481003842: "xfs",
  2435016766: "btrfs",
  16914836: "tmpfs",
  2035054128: "overlayfs",
};

export function machine(directory: string): Machine {
  const { type } = statfsSync(directory);
  return {
    cpu: cpus()[0]?.model.trim() ?? "unknown",
    cores: availableParallelism(),
    memoryBytes: totalmem(),
    kernel: release(),
    fileSystem: FILE_SYSTEMS[type] ?? `0x${type.toString(16)}`,
    node: process.version,
  };
}

/** CPU seconds used since boot. */
export interface CpuReading {
  readonly atMs: number;
  /** By everything, on all cores, kernel and interrupts included. */
  readonly allSeconds: number;
  /** By this process and those of its children that have ended. */
  readonly ownSeconds: number;
}

export function readCpu(): CpuReading {
  return {
    atMs: performance.now(),
    allSeconds: busySeconds(readFileSync("/proc/stat", "utf8")),
    ownSeconds: ownSeconds(readFileSync("/proc/self/stat", "utf8")),
  };
}

/**
 * Cores that somebody else kept busy between two readings: other programs, and kernel threads that work for whomever
 * (write-back, for one). Children that were started in between must have ended, or they count as somebody else.
 * Rough, and rather too low: the kernel samples the first figure at its ticks and measures the second exactly.
 */
export function foreignCores(before: CpuReading, after: CpuReading): number {
  const wallSeconds = (after.atMs - before.atMs) / 1000;
  const foreign = after.allSeconds - before.allSeconds - (after.ownSeconds - before.ownSeconds);
  return wallSeconds > 0 ? Math.max(0, foreign / wallSeconds) : 0;
}

/** The load average of the last minute. */
export function loadAverage(): number {
  return loadavg()[0] ?? 0;
}

/** proc(5), /proc/stat, first line: user nice system idle iowait irq softirq steal guest guest_nice. */
export function busySeconds(procStat: string): number {
  const [user, nice, system, , , irq, softirq, steal] = (procStat.split("\n")[0] ?? "")
    .trim()
    .split(/\s+/)
    .slice(1)
    .map(Number);
  const ticks = [user, nice, system, irq, softirq, steal].reduce<number>((sum, value) => sum + (value ?? 0), 0);
  return ticks / TICKS_PER_SECOND;
}

function ownSeconds(procSelfStat: string): number {
  const [user, system, childUser, childSystem] = cpuFields(procSelfStat);
  return (user + system + childUser + childSystem) / TICKS_PER_SECOND;
}

/**
 * utime, stime, cutime and cstime, fields 14 to 17 of proc(5), /proc/PID/stat, in ticks; the second field is a name in
 * parentheses that may itself hold spaces and parentheses.
 */
export function cpuFields(stat: string): [number, number, number, number] {
  const fields = stat
    .slice(stat.lastIndexOf(")") + 2)
    .split(" ")
    .map(Number);
  return [fields[11] ?? 0, fields[12] ?? 0, fields[13] ?? 0, fields[14] ?? 0];
}
