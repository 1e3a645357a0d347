/** What is here and what is missing of an overlay, as clients and operators ask for it. */
import type { PresenceSource } from "../../control/pages.ts";
import type { Overlay } from "../../cor/overlay.ts";
import type { MetaContext, StatusExtent } from "../../nbd/server/export.ts";

/** Values of the metadata context, as `blockferry map` has them. */
const LOCAL = 0;
const MISSING = 1;

interface ByteRange {
  readonly offset: number;
  readonly end: number;
}

/** Missing ranges from `offset` on; the first may begin before it. */
async function* missingRanges(overlay: Overlay, offset: number): AsyncGenerator<ByteRange> {
  const { clusterBytes, sizeBytes } = overlay;
  for await (const { first, count } of overlay.missing(Math.floor(offset / clusterBytes))) {
    yield { offset: first * clusterBytes, end: Math.min((first + count) * clusterBytes, sizeBytes) };
  }
}

/** `x-blockferry:presence`: 0 is local, 1 is missing. */
export function presenceContext(overlay: Overlay): MetaContext {
  return {
    name: "x-blockferry:presence",
    async status(offset, length, countMax) {
      const end = offset + length;
      const list: StatusExtent[] = [];
      let at = offset;
      for await (const run of missingRanges(overlay, offset)) {
        const start = Math.min(Math.max(run.offset, at), end);
        if (start > at) list.push({ length: start - at, flags: LOCAL });
        const stop = Math.min(run.end, end);
        if (stop > start) list.push({ length: stop - start, flags: MISSING });
        at = Math.max(stop, start);
        if (at >= end || list.length >= countMax) return list.slice(0, countMax);
      }
      list.push({ length: end - at, flags: LOCAL });
      return list;
    },
  };
}

/** For `map` and `missing` on the control socket. */
export function presenceSource(overlay: Overlay, name: string): PresenceSource {
  return {
    name,
    sizeBytes: overlay.sizeBytes,
    async *missing(offset) {
      for await (const run of missingRanges(overlay, offset)) {
        yield { offset: run.offset, length: run.end - run.offset };
      }
    },
  };
}
