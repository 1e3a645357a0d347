/** What a source tells of itself. */
import type { PhaseBook } from "./phase-book.ts";
import { type SourcePhase, shownPhase } from "./phases.ts";
import type { SourceGroup } from "./source-group.ts";
import type { SourceLink } from "./source-link.ts";
import type { SourceStatus } from "./source-options.ts";

export interface SourceParts extends Pick<SourceStatus, "destinationWrote" | "mode"> {
  readonly phases: PhaseBook<SourcePhase>;
  readonly group: SourceGroup;
  readonly link: SourceLink;
}

const OWNERS: Readonly<Partial<Record<SourcePhase, SourceStatus["owner"]>>> = {
  ...{ granted: "nobody", serving: "destination", released: "destination" },
};

export function sourceStatus({ phases, group, link, destinationWrote, mode }: SourceParts): SourceStatus {
  const { current: phase, forMs, lastError } = phases;
  const { migrationId, destinationId, term } = group;
  return {
    ...{ role: "source", phase, shown: shownPhase(phase, link.connected), forMs },
    ...{ migrationId, destinationId, term, destinationWrote, mode, lastError },
    owner: OWNERS[phase] ?? "source",
    disks: group.disks.map((disk) => disk.status()),
    link: link.link.status(),
  };
}
