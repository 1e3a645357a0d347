/** What `top` shows: lines for a terminal, lines for a log, JSON for programs. Pure; safe for a terminal. */
import type { DiskStatus, Hydration, Status } from "../../control/status.ts";
import { printable, printableJson } from "../printable.ts";
import {
  formatDuration,
  formatRate,
  formatSize,
  type Progress,
  progressBar,
  progressLine,
} from "../progress/format.ts";
import { renderEvent } from "../verbs/status-text.ts";
import type { InstanceView } from "./watched.ts";

export type Mood = "plain" | "head" | "good" | "warning" | "bad" | "dim";

export interface Line {
  readonly text: string;
  readonly mood: Mood;
}

export interface Screen {
  readonly columns: number;
  readonly rows: number;
  /** Calendar time. */
  readonly wallMs: number;
}

const MOODS: Readonly<Record<Status["state"], Mood>> = {
  starting: "dim",
  running: "plain",
  paused: "warning",
  stalled: "warning",
  complete: "good",
  stopping: "dim",
  failed: "bad",
};

/** As many lines as fit, none longer than the terminal is wide. */
export function renderScreen(views: readonly InstanceView[], { columns, rows, wallMs }: Screen): Line[] {
  const clock = new Date(wallMs).toISOString().slice(11, 19);
  const many = `${views.length} ${views.length === 1 ? "instance" : "instances"}`;
  const lines: Line[] = [{ text: `blockferry top   ${many}   ${clock} UTC   q ends`, mood: "dim" }];
  for (const view of views) lines.push({ text: "", mood: "plain" }, ...instanceLines(view, columns));
  const shown = lines.length <= rows ? lines : lines.slice(0, Math.max(0, rows - 1));
  if (shown.length < lines.length && rows > 0) {
    shown.push({ text: `… ${lines.length - shown.length} more lines: make the terminal higher`, mood: "dim" });
  }
  // The last column stays free: some terminals go to the next line when it is written to.
  return shown.map(({ text, mood }) => ({ text: printable(text).slice(0, Math.max(0, columns - 1)), mood }));
}

function instanceLines(view: InstanceView, columns: number): Line[] {
  const { control, status, trouble, lastEvent } = view;
  if (status === undefined) return [{ text: `${control}: ${trouble ?? "unknown"}`, mood: view.ended ? "dim" : "bad" }];
  const clients = `${status.clients} ${status.clients === 1 ? "client" : "clients"}`;
  const up = formatDuration(status.uptimeSeconds);
  const lines: Line[] = [
    { text: `${status.role} ${status.pid}: ${status.state}, ${clients}, up ${up}`, mood: "head" },
    ...status.disks.flatMap((disk) => diskLines(disk, { columns, mood: MOODS[status.state] })),
  ];
  if (lastEvent !== undefined) lines.push({ text: `  last       ${renderEvent(lastEvent)}`, mood: "dim" });
  if (status.next !== null) lines.push({ text: `  next       ${status.next}`, mood: "warning" });
  return lines;
}

function diskLines(disk: DiskStatus, { columns, mood }: { columns: number; mood: Mood }): Line[] {
  const { hydration, source } = disk;
  const access = disk.readOnly ? ", read-only" : "";
  const what = `  ${nameOf(disk)}: ${disk.state}  ${disk.image}  (${disk.format}, ${formatSize(disk.sizeBytes)}${access})`;
  const lines: Line[] = [{ text: what, mood: "plain" }];
  if (hydration !== null) {
    lines.push({ text: `  ${progressBar(progressOf(disk, hydration), columns - 2)}`, mood });
    lines.push({ text: `  stream     ${stream(hydration)}`, mood: "plain" });
  }
  const stalls = stallsOf(disk);
  if (stalls !== undefined) lines.push({ text: `  guests     ${stalls}`, mood: "plain" });
  if (source !== null) {
    const away = source.state !== "connected" && source.state !== "released";
    const error = away && source.lastError !== null ? `: ${source.lastError}` : "";
    const again = source.reconnects === 0 ? "" : `, ${source.reconnects} reconnects`;
    const text = `  source     ${source.state}${again}  ${source.uri}${error}`;
    lines.push({ text, mood: source.state === "refused" ? "bad" : away ? "warning" : "plain" });
  }
  return lines;
}

function nameOf({ name }: DiskStatus): string {
  return name === "" ? "disk" : name;
}

function progressOf({ localBytes, sizeBytes }: DiskStatus, hydration: Hydration): Progress {
  return { ...hydration, localBytes, sizeBytes };
}

/** "window 8.0 MiB, round trip 12.3 ms (least 11.8 ms), limit 100 MiB/s" */
function stream(hydration: Hydration): string {
  const { windowBytes, rttSeconds, minRttSeconds, rateLimitBytesPerSecond: limit, errorsTotal } = hydration;
  const least = minRttSeconds === undefined ? "" : ` (least ${milliseconds(minRttSeconds)})`;
  const parts = [
    ...(windowBytes === undefined ? [] : [`window ${formatSize(windowBytes)}`]),
    ...(rttSeconds === undefined ? [] : [`round trip ${milliseconds(rttSeconds)}${least}`]),
    limit === null ? "no limit" : `limit ${formatRate(limit)}`,
    ...(errorsTotal === 0 ? [] : [`${errorsTotal} unreadable ranges`]),
  ];
  return parts.join(", ");
}

/** How long guests waited for what was missing. */
function stallsOf({ stalls }: DiskStatus): string | undefined {
  if (stalls === undefined) return undefined;
  const { count, totalSeconds, p50Seconds, p99Seconds, maxSeconds } = stalls;
  if (count === 0) return "never waited";
  const times = `p50 ${milliseconds(p50Seconds)}, p99 ${milliseconds(p99Seconds)}, max ${milliseconds(maxSeconds)}`;
  return `waited ${count} times: ${times}, ${totalSeconds.toFixed(1)} s in all`;
}

/** "0.25 ms", "12.3 ms", "1.20 s" */
export function milliseconds(seconds: number): string {
  if (seconds >= 1) return `${seconds.toFixed(2)} s`;
  const ms = seconds * 1000;
  return `${ms.toFixed(ms < 1 ? 2 : 1)} ms`;
}

/** A line for every disk, and one for every instance that says nothing of itself. */
export function renderPlain(views: readonly InstanceView[]): string[] {
  return views.flatMap((view) => {
    const { control, status, trouble } = view;
    if (status === undefined) return [printable(`${control}: ${trouble ?? "unknown"}`)];
    const who = `${status.role} ${status.pid}`;
    if (status.disks.length === 0) return [`${who}  ${status.state}`];
    return status.disks.map((disk) => printable(`${who}  ${nameOf(disk)}  ${plainDisk(disk, status)}`));
  });
}

function plainDisk(disk: DiskStatus, status: Status): string {
  const { hydration, source } = disk;
  const stalls = stallsOf(disk);
  const parts = [
    status.state,
    ...(hydration === null
      ? [formatSize(disk.sizeBytes)]
      : [progressLine(progressOf(disk, hydration)), stream(hydration)]),
    ...(stalls === undefined ? [] : [`guests ${stalls}`]),
    ...(source === null ? [] : [`source ${source.state}`]),
  ];
  return parts.join("  ");
}

/** One object, on one line. Keys are a contract. */
export function renderJson(views: readonly InstanceView[], wallMs: number): string {
  const instances = views.map(({ control, status, trouble, ended }) => ({
    control,
    ended,
    status: status ?? null,
    trouble: status === undefined ? (trouble ?? null) : null,
  }));
  return printableJson({ time: new Date(wallMs).toISOString(), instances });
}
