/** What of a disk is here, also while it belongs to the source: then nothing counts, whatever was pulled. */
import type { PresenceSource } from "../../control/pages.ts";
import type { DestinationExport } from "../../migrate/destination-options.ts";
import type { MetaContext } from "../../nbd/server/export.ts";
import { presenceContext, presenceSource } from "../clone/presence.ts";

const MISSING = 1;
const CONTEXT = "x-blockferry:presence";

export function destPresenceContext({ overlay }: DestinationExport): MetaContext {
  return {
    name: CONTEXT,
    status: async (offset, length, countMax) => {
      const here = overlay();
      if (here === undefined) return [{ length, flags: MISSING }];
      return await presenceContext(here).status(offset, length, countMax);
    },
  };
}

export function destPresenceSource({ name, sizeBytes, overlay }: DestinationExport): PresenceSource {
  return {
    ...{ name, sizeBytes },
    missing: (offset) => {
      const here = overlay();
      return here === undefined ? [{ offset: 0, length: sizeBytes }] : presenceSource(here, name).missing(offset);
    },
  };
}
