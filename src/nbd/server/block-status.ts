/** Answers NBD_CMD_BLOCK_STATUS: one chunk for each context the client selected. */
import type { BlockDevice } from "../../block/device.ts";
import type { ByteStream } from "../../env/links.ts";
import { NBD_CMD_FLAG_REQ_ONE, NBD_STATE_HOLE, NBD_STATE_ZERO } from "../constants.ts";
import type { SelectedContext } from "./connection-context.ts";
import type { MetaContext, StatusExtent } from "./export.ts";
import type { ReplyEncoder } from "./reply.ts";
import type { Request } from "./request.ts";

/** Extents in one reply; a client that wants more asks again. */
const EXTENTS_MAX = 4096;

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

export interface StatusSetup {
  readonly stream: ByteStream;
  readonly encoder: ReplyEncoder;
  readonly negotiated: { readonly contexts: readonly SelectedContext[] };
}

/** Resolves to true: the reply has been sent. All contexts are asked first, so that a failure is the only reply. */
export async function sendBlockStatus(setup: StatusSetup, request: Request): Promise<boolean> {
  const { negotiated, encoder, stream } = setup;
  const countMax = (request.flags & NBD_CMD_FLAG_REQ_ONE) !== 0 ? 1 : EXTENTS_MAX;
  const found: { id: number; extents: StatusExtent[] }[] = [];
  for (const { id, context } of negotiated.contexts) {
    found.push({ id, extents: await context.status(request.offset, request.length, countMax) });
  }
  found.forEach(({ id, extents }, index) => {
    stream.write(encoder.statusChunk(request, { contextId: id, extents, done: index === found.length - 1 }));
  });
  return true;
}
