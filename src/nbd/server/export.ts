/** What a server offers under a name. */
import type { BlockDevice } from "../../block/device.ts";
import {
  NBD_FLAG_CAN_MULTI_CONN,
  NBD_FLAG_HAS_FLAGS,
  NBD_FLAG_READ_ONLY,
  NBD_FLAG_ROTATIONAL,
  NBD_FLAG_SEND_CACHE,
  NBD_FLAG_SEND_DF,
  NBD_FLAG_SEND_FAST_ZERO,
  NBD_FLAG_SEND_FLUSH,
  NBD_FLAG_SEND_FUA,
  NBD_FLAG_SEND_TRIM,
  NBD_FLAG_SEND_WRITE_ZEROES,
} from "../constants.ts";

export interface NbdExport {
  /** Compared byte for byte with what a client asks for; never a path. */
  readonly name: string;
  readonly description?: string;
  readonly device: BlockDevice;
  readonly readOnly: boolean;
  /** Contexts besides base:allocation, which every export has. */
  readonly contexts?: readonly MetaContext[];
}

/** A description of ranges in numbers that `name` gives a meaning: "x-blockferry:presence", say. */
export interface MetaContext {
  /** "namespace:leaf", at most 255 bytes of ASCII; private namespaces begin with "x-". */
  readonly name: string;
  /**
   * What [offset, offset + length) is: at least one entry, at most `countMax`, without gaps, not longer than `length`
   * together. A `BlockError` is passed on to the client; to break these rules is a bug, and stops writes to the device.
   */
  status(offset: number, length: number, countMax: number): Promise<StatusExtent[]>;
}

export interface StatusExtent {
  /** Bytes, above zero. */
  readonly length: number;
  /** 32 bits, which is what clients without extended headers can be told. */
  readonly flags: number;
}

const CONTEXT_NAME = /^[!-9;-~]+:[ -~]+$/;
const CONTEXT_NAME_BYTES_MAX = 255;

/** Throws for contexts that clients could not select, or not tell apart. */
export function checkContexts({ contexts = [] }: NbdExport): void {
  const names = new Set(contexts.map(({ name }) => name));
  if (names.size !== contexts.length) throw new Error("two metadata contexts of an export have the same name");
  for (const name of names) {
    const good = CONTEXT_NAME.test(name) && name.length <= CONTEXT_NAME_BYTES_MAX && !name.startsWith("base:");
    if (!good) throw new Error(`no name for a metadata context: ${JSON.stringify(name)}`);
  }
}

/** The transmission flags of an export. DF needs structured replies. */
export function transmissionFlags(exported: NbdExport, structuredReplies: boolean): number {
  const { capabilities } = exported.device;
  // Every device of ours flushes for all who use it (see BlockDevice.flush), so several connections are always safe.
  let flags =
    NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_FLUSH | NBD_FLAG_SEND_FUA | NBD_FLAG_SEND_CACHE | NBD_FLAG_CAN_MULTI_CONN;
  if (capabilities.rotational) flags |= NBD_FLAG_ROTATIONAL;
  if (structuredReplies) flags |= NBD_FLAG_SEND_DF;
  if (isReadOnly(exported)) return flags | NBD_FLAG_READ_ONLY;
  return flags | NBD_FLAG_SEND_TRIM | NBD_FLAG_SEND_WRITE_ZEROES | NBD_FLAG_SEND_FAST_ZERO;
}

export function isReadOnly(exported: NbdExport): boolean {
  return exported.readOnly || exported.device.capabilities.readOnly;
}
