/** What `status` and `events` print for people, and the one line of `status --raw`. Pure; safe for a terminal. */
import type { ControlEvent } from "../../control/messages.ts";
import type { DiskStatus, Hydration, Status, TableCheck } from "../../control/status.ts";
import { migrationLines, migrationWords } from "../migration/status-lines.ts";
import { printable } from "../printable.ts";
import { formatDuration, formatRate, formatSize, percentOf, progressLine } from "../progress/format.ts";

/** A head line, the URIs, then each disk with what is going on; ends with a newline. */
export function renderStatus(status: Status): string {
  const clients = `${status.clients} ${status.clients === 1 ? "client" : "clients"}`;
  const up = `up ${formatDuration(status.uptimeSeconds)}`;
  const lines = [
    `${status.role}: ${status.state}, ${clients}, ${up}  (pid ${status.pid}, ${status.program} ${status.version})`,
    ...status.uris.map((uri) => `  ${uri}`),
    ...(status.migration === undefined ? [] : migrationLines(status.migration)),
    ...status.disks.flatMap(diskLines),
  ];
  if (status.next !== null) lines.push(`next: ${status.next}`);
  return lines.map((line) => `${printable(line)}\n`).join("");
}

function diskLines(disk: DiskStatus): string[] {
  const { hydration, source } = disk;
  const name = disk.name === "" ? "disk" : disk.name;
  const mode = disk.readOnly ? ", read-only" : "";
  const lines = [`${name}: ${disk.state}  ${disk.image}  (${disk.format}, ${formatSize(disk.sizeBytes)}${mode})`];
  if (hydration !== null) lines.push(...hydrationLines(disk, hydration));
  if (disk.tableCheck !== undefined) lines.push(tableCheckLine(disk.tableCheck));
  if (source !== null) {
    const again = source.reconnects === 0 ? "" : `, ${source.reconnects} reconnects`;
    const error = source.lastError === null ? "" : `: ${source.lastError}`;
    lines.push(`  source     ${source.uri}  ${source.state} since ${source.since}${again}${error}`);
  }
  return lines;
}

function hydrationLines(disk: DiskStatus, hydration: Hydration): string[] {
  const { localBytes, sizeBytes } = disk;
  const { rateLimitBytesPerSecond: limit, fetchedBytes, zeroBytes, errors, errorsTotal } = hydration;
  const limited = limit === null ? "" : `  (limit ${formatRate(limit)})`;
  const lines = [
    `  ${hydration.state.padEnd(10)} ${progressLine({ ...hydration, localBytes, sizeBytes })}${limited}`,
    `  missing    ${formatSize(disk.missingBytes)}; fetched ${formatSize(fetchedBytes)}, zero ${formatSize(zeroBytes)}`,
  ];
  if (disk.heat !== undefined) lines.push(heatLine(disk.heat));
  if (errorsTotal > 0) {
    const ranges = errors.map(({ offset, length, code }) => `${offset}+${length} ${code}`).join(", ");
    const more = errorsTotal > errors.length ? ` and ${errorsTotal - errors.length} more` : "";
    lines.push(`  unreadable ${ranges}${more}`);
  }
  return lines;
}

function heatLine({ regionBytes, regions, taken }: NonNullable<DiskStatus["heat"]>): string {
  return `  order      what the guest used most first: ${taken} of ${regions} regions of ${formatSize(regionBytes)}, then the rest`;
}

function tableCheckLine(check: TableCheck): string {
  const { clustersChecked, clustersTotal, waiting, longestWaitSeconds, entriesCleared, failure } = check;
  const far = check.state === "running" ? ` ${percentOf(clustersChecked, clustersTotal).toFixed(1)}%` : "";
  const cleared = entriesCleared === 0 ? "" : `, ${entriesCleared} entries cleared`;
  const barrier = `${waiting} waiting for it, longest ${longestWaitSeconds.toFixed(1)} s`;
  const why = failure === null ? "" : `: ${failure}`;
  return `  tables     ${check.state}${far}${cleared}; ${barrier}${why}`;
}

/** One line of `key=value` words. Keys that begin a group (`disk=`) come again for the next disk. */
export function renderRawStatus(status: Status): string {
  const { role, pid, state, clients, uptimeSeconds } = status;
  const head = { role, pid, state, clients, uptime: Math.floor(uptimeSeconds) };
  const migration = status.migration === undefined ? [] : [migrationWords(status.migration)];
  return [head, ...migration, ...status.disks.map(rawDisk)].map(words).join(" ");
}

function rawDisk({ name, state, sizeBytes, localBytes, missingBytes, hydration }: DiskStatus): Words {
  const disk = { disk: name, job: state, size: sizeBytes, local: localBytes, missing: missingBytes };
  const percent = percentOf(localBytes, sizeBytes).toFixed(1);
  if (hydration === null) return { ...disk, percent };
  return {
    ...disk,
    percent,
    hydration: hydration.state,
    rate: Math.round(hydration.rateBytesPerSecond),
    eta: hydration.etaSeconds === null ? "-" : Math.round(hydration.etaSeconds),
    errors: hydration.errorsTotal,
  };
}

type Words = Readonly<Record<string, string | number>>;

function words(record: Words): string {
  return Object.entries(record)
    .map(([key, value]) => `${key}=${word(value)}`)
    .join(" ");
}

/** As it is, or as a JSON string where it is empty or has blanks, quotes or the like in it. */
function word(value: unknown): string {
  const text = String(value);
  return /^[\w./:@+%-]+$/.test(text) ? text : printable(JSON.stringify(text));
}

/** `2026-11-21T06:00:00.000Z  stalled  reason="…"` */
export function renderEvent({ event, seq: _, time, ...fields }: ControlEvent): string {
  const pairs = Object.entries(fields).map(([key, value]) => `${printable(key)}=${word(value)}`);
  return [printable(time), printable(event), ...pairs].join("  ");
}
