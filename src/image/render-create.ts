/** What `image create` has made, in the form of `qemu-img create`. */
import type { CreateImageOptions, ImageFormat } from "./format.ts";

const CLUSTER_BYTES = 65_536;

/** With the line's end. `shown`: how names are printed. */
export function renderCreated(
  format: ImageFormat,
  options: CreateImageOptions,
  shown: (name: string) => string,
): string {
  const { path, sizeBytes, clusterBytes, tableClusters, version, backing } = options;
  const size = `size=${sizeBytes}`;
  const over = backing === undefined ? [] : [`backing_file=${shown(backing.name)}`, `backing_fmt=${backing.format}`];
  const cluster = `cluster_size=${clusterBytes ?? CLUSTER_BYTES}`;
  const table = tableClusters === undefined ? [] : [`table_size=${tableClusters}`];
  const compat = version === undefined ? [] : [`compat=${version === 2 ? "0.10" : "1.1"}`];
  const words: Readonly<Record<string, readonly string[]>> = {
    raw: [size],
    qed: [size, ...over, cluster, ...table],
    qcow2: [
      ...[cluster, "extended_l2=off", "compression_type=zlib", size],
      ...[...compat, ...over, "lazy_refcounts=off", "refcount_bits=16"],
    ],
  };
  return `Formatting '${shown(path)}', fmt=${[format.name, ...(words[format.name] ?? [])].join(" ")}\n`;
}

/** The same as JSON, in the words of `qemu-img info`. */
export function createdFields(format: ImageFormat, options: CreateImageOptions): object {
  const { path, sizeBytes, clusterBytes = CLUSTER_BYTES, backing } = options;
  return {
    filename: path,
    format: format.name,
    "virtual-size": sizeBytes,
    ...(!format.flat && { "cluster-size": clusterBytes }),
    ...(backing !== undefined && { "backing-filename": backing.name, "backing-filename-format": backing.format }),
  };
}
