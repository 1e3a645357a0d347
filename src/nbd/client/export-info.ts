/**
 * What a server tells about an export, checked: replies to INFO and GO. proto.md, "Option reply types", NBD_REP_INFO,
 * and "Size constraints".
 *
 * ```
 * NBD_INFO_EXPORT       0 u16 type   2 u64 size      10 u16 transmission flags                    (12)
 * NBD_INFO_BLOCK_SIZE   0 u16 type   2 u32 minimum    6 u32 preferred       10 u32 maximum        (14)
 * NBD_INFO_NAME, NBD_INFO_DESCRIPTION   0 u16 type   2 string
 * ```
 */
import {
  NBD_DEFAULT_MAX_PAYLOAD,
  NBD_FLAG_HAS_FLAGS,
  NBD_INFO_BLOCK_SIZE,
  NBD_INFO_DESCRIPTION,
  NBD_INFO_EXPORT,
  NBD_INFO_NAME,
} from "../constants.ts";
import { NbdProtocolError } from "../error.ts";
import { NbdConnectError, printable } from "./errors.ts";
import { decodeString, readU64, viewOf } from "./wire.ts";

export interface NbdBlockSizes {
  readonly minimum: number;
  readonly preferred: number;
  /** The longest payload, as the server says; 0xffffffff: no limit of its own. */
  readonly maximum: number;
}

export interface ExportInfo {
  readonly name: string;
  readonly sizeBytes: number;
  /** `NBD_FLAG_…` of transmission. */
  readonly flags: number;
  readonly blockSizes: NbdBlockSizes;
  /** The server's own name of the export, where it tells one. */
  readonly canonicalName?: string;
  readonly description?: string;
}

/** Where a server says nothing else. */
export const DEFAULT_BLOCK_SIZES: NbdBlockSizes = { minimum: 1, preferred: 4096, maximum: NBD_DEFAULT_MAX_PAYLOAD };

const MINIMUM_BLOCK_MAX = 65_536;
const PREFERRED_BLOCK_MIN = 512;

/** Takes the INFO replies of one option and makes an `ExportInfo` of them. */
export class InfoCollector {
  readonly #name: string;
  #size: { sizeBytes: number; flags: number } | undefined;
  #blockSizes = DEFAULT_BLOCK_SIZES;
  #canonicalName: string | undefined;
  #description: string | undefined;

  constructor(name: string) {
    this.#name = name;
  }

  /** Throws `NbdProtocolError`. Types that we do not know are left alone. */
  take(data: Uint8Array): void {
    if (data.length < 2) throw new NbdProtocolError("an information reply has no type");
    const view = viewOf(data);
    switch (view.getUint16(0)) {
      case NBD_INFO_EXPORT:
        expectLength(data, 12, "NBD_INFO_EXPORT");
        this.#size = { sizeBytes: readU64(view, 2), flags: view.getUint16(10) };
        break;
      case NBD_INFO_BLOCK_SIZE:
        expectLength(data, 14, "NBD_INFO_BLOCK_SIZE");
        this.#blockSizes = checkBlockSizes(view.getUint32(2), view.getUint32(6), view.getUint32(10));
        break;
      case NBD_INFO_NAME:
        this.#canonicalName = decodeString(data.subarray(2), "the export's name");
        break;
      case NBD_INFO_DESCRIPTION:
        this.#description = decodeString(data.subarray(2), "the export's description");
        break;
      default:
        break;
    }
  }

  /** Call after the acknowledgement. Throws when the mandatory reply did not come. */
  result(): ExportInfo {
    if (this.#size === undefined)
      throw new NbdProtocolError("the server acknowledged without telling the export's size");
    return {
      name: this.#name,
      ...this.#size,
      blockSizes: this.#blockSizes,
      ...(this.#canonicalName === undefined ? {} : { canonicalName: this.#canonicalName }),
      ...(this.#description === undefined ? {} : { description: this.#description }),
    };
  }
}

/** Whether we can work with the export. Throws otherwise. */
export function checkUsable(info: ExportInfo): void {
  const what = `cannot use the export "${printable(info.name)}"`;
  const hint = "Export it with another size or other block sizes.";
  if ((info.flags & NBD_FLAG_HAS_FLAGS) === 0)
    throw new NbdProtocolError("the transmission flags lack NBD_FLAG_HAS_FLAGS");
  if (!Number.isSafeInteger(info.sizeBytes)) {
    throw new NbdConnectError("bad-export", { what, why: "it is larger than 8 PiB", hint });
  }
  const { minimum } = info.blockSizes;
  if (info.sizeBytes % minimum !== 0) {
    const why = `its size, ${info.sizeBytes} bytes, is not a multiple of its own block size, ${minimum}: the end cannot be reached`;
    throw new NbdConnectError("bad-export", { what, why, hint });
  }
}

function expectLength(data: Uint8Array, bytes: number, what: string): void {
  if (data.length !== bytes) throw new NbdProtocolError(`${what} has ${data.length} bytes instead of ${bytes}`);
}

function checkBlockSizes(minimum: number, preferred: number, maximum: number): NbdBlockSizes {
  const valid =
    isPowerOfTwo(minimum) &&
    minimum <= MINIMUM_BLOCK_MAX &&
    isPowerOfTwo(preferred) &&
    preferred >= Math.max(minimum, PREFERRED_BLOCK_MIN) &&
    maximum >= preferred;
  if (!valid)
    throw new NbdProtocolError(`the block sizes ${minimum}/${preferred}/${maximum} break the protocol's rules`);
  return { minimum, preferred, maximum };
}

function isPowerOfTwo(value: number): boolean {
  return value > 0 && 2 ** Math.round(Math.log2(value)) === value;
}
