/** The chunks that answer NBD_CMD_BLOCK_STATUS: one for each context the client selected. */
import type { BlockDevice } from "../../block/device.ts";
import { NBD_CMD_FLAG_REQ_ONE, NBD_STATE_HOLE, NBD_STATE_ZERO } from "../constants.ts";
import type { SelectedContext } from "./connection-context.ts";
import type { MetaContext, StatusExtent } from "./export.ts";
import type { ReplyEncoder } from "./reply.ts";
import type { Request } from "./request.ts";

/** Extents in one reply; a client that wants more asks again. */
const EXTENTS_MAX = 4096;
const STATUS_HEADER_BYTES_MAX = 40;
const EXTENT_BYTES_MAX = 16;

export const BASE_ALLOCATION = "base:allocation";

export function baseAllocation(device: BlockDevice): MetaContext {
  return {
    name: BASE_ALLOCATION,
    status: async (offset, length, countMax) => {
      const extents = await device.extents(offset, length, countMax);
      return extents.map(({ length: bytes, hole, zero }) => ({
        length: bytes,
        flags: (hole ? NBD_STATE_HOLE : 0) | (zero ? NBD_STATE_ZERO : 0),
      }));
    },
  };
}

/** What a chunk of as many extents as `request` may be answered with takes at most. */
export function statusBytesMax(request: Request): number {
  return STATUS_HEADER_BYTES_MAX + countMaxOf(request) * EXTENT_BYTES_MAX;
}

/** Asks a context, and encodes its answer as one chunk. */
export async function statusChunk(
  { id, context }: SelectedContext,
  request: Request,
  { encoder, done }: { encoder: ReplyEncoder; done: boolean },
): Promise<Buffer> {
  const countMax = countMaxOf(request);
  const extents = await context.status(request.offset, request.length, countMax);
  checkExtents(extents, request.length, countMax);
  return encoder.statusChunk(request, { contextId: id, extents, done });
}

function countMaxOf(request: Request): number {
  return (request.flags & NBD_CMD_FLAG_REQ_ONE) !== 0 ? 1 : EXTENTS_MAX;
}

/** A context that breaks its promise is a bug of ours: better an error for the client than nonsense on the wire. */
function checkExtents(extents: readonly StatusExtent[], length: number, countMax: number): void {
  let total = 0;
  for (const extent of extents) {
    const good = Number.isSafeInteger(extent.length) && extent.length > 0 && extent.flags === extent.flags >>> 0;
    if (!good) throw new Error(`an extent of ${extent.length} bytes with flags ${extent.flags}`);
    total += extent.length;
  }
  if (extents.length === 0 || extents.length > countMax || total > length) {
    throw new Error(`${extents.length} extents of ${total} bytes for ${length} bytes, at most ${countMax}`);
  }
}
