/**
 * What lies between the header and the end of the first cluster: header extensions (docs/interop/qcow2, "Header
 * extensions") and the name of the backing file. All of it is text, shown and never followed.
 *
 * An extension is a type (4 bytes), a length (4 bytes), and the data, padded to 8 bytes. Type 0 ends the list.
 */
import type { BackingReference } from "../image.ts";
import type { HeaderProblem } from "../tables/header-problem.ts";
import { clusterBytesOf, namesBacking, type Qcow2Header } from "./header.ts";

export const QCOW2_EXT_END = 0;
export const QCOW2_EXT_BACKING_FORMAT = 0xe279_2aca;
export const QCOW2_EXT_FEATURE_TABLE = 0x6803_f857;
export const QCOW2_EXT_BITMAPS = 0x2385_2875;
const FORMAT_NAME_BYTES_MAX = 15;

export interface Extensions {
  readonly reference: BackingReference | undefined;
  /** There are persistent bitmaps, whether they can be trusted or not. */
  readonly bitmaps: boolean;
}

/** `cluster` is the first one, or as much as the file has of it. */
export function parseExtensions(header: Qcow2Header, cluster: Buffer): Extensions | HeaderProblem {
  const { headerBytes, backingNameOffset, backingNameBytes } = header;
  const named = namesBacking(header);
  const end = named ? backingNameOffset : clusterBytesOf(header);
  let format: string | undefined;
  let bitmaps = false;
  for (let at = headerBytes; at < end && at + 8 <= cluster.length; ) {
    const type = cluster.readUInt32BE(at);
    const length = cluster.readUInt32BE(at + 4);
    if (
      length > Math.min(end, cluster.length) - at - 8 ||
      (type === QCOW2_EXT_BACKING_FORMAT && length > FORMAT_NAME_BYTES_MAX)
    ) {
      return { kind: "corrupt", field: "header extension", at, why: `has ${length} bytes: too many` };
    }
    if (type === QCOW2_EXT_END) break;
    if (type === QCOW2_EXT_BACKING_FORMAT) format = cluster.toString("utf8", at + 8, at + 8 + length);
    if (type === QCOW2_EXT_BITMAPS) bitmaps = true;
    at += 8 + Math.ceil(length / 8) * 8;
  }
  if (!named) return { reference: undefined, bitmaps };
  const name = cluster.toString("utf8", backingNameOffset, backingNameOffset + backingNameBytes);
  return { reference: { name, ...(format !== undefined && { format }) }, bitmaps };
}

export function encodeExtension(type: number, data: Buffer): Buffer {
  const bytes = Buffer.alloc(8 + Math.ceil(data.length / 8) * 8);
  bytes.writeUInt32BE(type, 0);
  bytes.writeUInt32BE(data.length, 4);
  data.copy(bytes, 8);
  return bytes;
}
