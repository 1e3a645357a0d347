/** What the header of a qcow2 image says of the format, in the words of `qemu-img info`. */
import type { FormatDetails } from "../image.ts";
import { isCorrupt, QCOW2_COMPAT_LAZY_REFCOUNTS, type Qcow2Header } from "./header.ts";

export function formatDetails(header: Qcow2Header): FormatDetails {
  const { version, compression, compatibleFeatures, refcountOrder } = header;
  const bits = { "refcount-bits": 2 ** refcountOrder };
  if (version === 2) return { type: "qcow2", data: { compat: "0.10", "compression-type": compression, ...bits } };
  const lazy = (compatibleFeatures & QCOW2_COMPAT_LAZY_REFCOUNTS) !== 0n;
  const data = { compat: "1.1", "compression-type": compression, "lazy-refcounts": lazy, ...bits };
  return { type: "qcow2", data: { ...data, corrupt: isCorrupt(header), "extended-l2": false } };
}
