/** The link, in the words of `status`. Pure. */
import type { MigrationStatus, SourceStatus } from "../../control/status.ts";
import type { LinkStatus } from "../../link/link-options.ts";

export function linkStatus(address: string, link: LinkStatus | undefined): MigrationStatus["link"] {
  return {
    address,
    state: link?.state ?? "connecting",
    forSeconds: (link?.forMs ?? 0) / 1000,
    connections: link?.connections ?? 0,
    rttSeconds: link?.rttMs === undefined ? null : link.rttMs / 1000,
    sentBytes: link?.sentBytes ?? 0,
    receivedBytes: link?.receivedBytes ?? 0,
  };
}

const SOURCE_STATES: Readonly<Record<LinkStatus["state"], SourceStatus["state"]>> = {
  connecting: "connecting",
  connected: "connected",
  disconnected: "disconnected",
  closed: "released",
  refused: "refused",
};

/** As the source of a disk. */
export function sourceOverLink(address: string, link: LinkStatus | undefined, wallMs: number): SourceStatus {
  return {
    uri: address,
    state: SOURCE_STATES[link?.state ?? "connecting"],
    since: new Date(wallMs - (link?.forMs ?? 0)).toISOString(),
    reconnects: Math.max(0, (link?.connections ?? 0) - 1),
    lastError: cut(link?.lastError),
  };
}

/** What somebody else may have said, as long as a status takes it. */
export function cut(text: string | undefined): string | null {
  return text?.slice(0, 1000) ?? null;
}
