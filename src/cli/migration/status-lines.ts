/** What `status` prints of a migration, for people and as words. Pure. */
import type { GuestStatus, MigrationStatus } from "../../control/status.ts";
import { formatDuration, formatSize } from "../progress/format.ts";

const OWNERS: Readonly<Record<MigrationStatus["owner"], string>> = {
  source: "the source has the disks",
  destination: "the destination has the disks",
  nobody: "nobody may write until the destination has said that it has the disks",
  "not here": "the disks are not this host's",
};

export function migrationLines(migration: MigrationStatus): string[] {
  const { phase, shown, forSeconds, owner, term, mode, destinationWrote, link, lastError, guest } = migration;
  const down = shown === phase ? "" : ` (${shown})`;
  const wrote = destinationWrote === true ? ", and its guest has written" : "";
  const rtt = link.rttSeconds === null ? "" : `, round trip ${(link.rttSeconds * 1000).toFixed(1)} ms`;
  const again = link.connections > 1 ? `, ${link.connections - 1} reconnects` : "";
  const moved = `sent ${formatSize(link.sentBytes)}, received ${formatSize(link.receivedBytes)}`;
  return [
    `migration: ${phase}${down} for ${formatDuration(forSeconds)}${mode === null ? "" : `, ${mode}`}, term ${term}`,
    `  owner      ${OWNERS[owner]}${wrote}`,
    `  link       ${link.address}  ${link.state}${again}${rtt}; ${moved}`,
    ...(lastError === null ? [] : [`  last error ${lastError}`]),
    ...(guest === undefined ? [] : [guestLine(guest)]),
  ];
}

function guestLine({ phase, sentBytes, restBytes, lastError }: GuestStatus): string {
  const far = sentBytes === null || restBytes === null || sentBytes === 0 ? "" : memoryLine(sentBytes, restBytes);
  return `  guest      ${phase}${far}${lastError === null ? "" : `: ${lastError}`}`;
}

function memoryLine(sentBytes: number, restBytes: number): string {
  return `, ${formatSize(sentBytes)} of memory sent, ${formatSize(restBytes)} left`;
}

export function migrationWords(migration: MigrationStatus): Readonly<Record<string, string | number>> {
  const { phase, shown, owner, term, link, guest } = migration;
  return { phase, shown, owner, term, link: link.state, ...(guest !== undefined && { guest: guest.phase }) };
}
