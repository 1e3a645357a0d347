/**
 * Whether the images that were named are the ones that QEMU uses. Behind `source` a guest would not have come up with others;
 * one whose QEMU has its images open would move, and find another disk under its feet. Pure.
 */
import type { BlockDevices, ImageNode } from "../../qmp/messages.ts";

/** An image that was named, and what was named with it. */
export interface NamedImage {
  readonly name: string;
  /** The top first. */
  readonly paths: readonly [string, ...string[]];
  /** By the names that QEMU has for them as well. */
  readonly format: string;
  readonly sizeBytes: number;
}

export interface Findings {
  /** Why they must not be given away. */
  readonly problems: readonly string[];
  /** What could not be looked into. */
  readonly doubts: readonly string[];
}

/** Tells files apart, by whatever name; undefined: nothing can be said of this name. */
export type Identify = (path: string) => string | undefined;

const SECTOR_BYTES = 512;

export function compareWithQemu(images: readonly NamedImage[], devices: BlockDevices, identify: Identify): Findings {
  const used = devices.flatMap(({ inserted }) => inserted?.image ?? []);
  const problems: string[] = [];
  const doubts: string[] = [];
  for (const image of images) {
    const [top] = image.paths;
    const wanted = identify(top);
    const isIt = ({ filename }: ImageNode): boolean => wanted !== undefined && identify(filename) === wanted;
    const node = used.find(isIt);
    const above = used.find((it) => belowOf(it).some(isIt));
    if (node !== undefined) problems.push(...differences(image, node, identify));
    else if (above !== undefined)
      problems.push(`${image.name}: QEMU writes to ${above.filename}, which lies over ${top}`);
    else if (used.some(({ filename }) => identify(filename) === undefined)) {
      doubts.push(`${image.name}: whether QEMU uses ${top} cannot be seen, since it names its files in another way`);
    } else
      problems.push(`${image.name}: QEMU does not use ${top}, but ${used.map(nameOf).join(", ") || "no image at all"}`);
  }
  return { problems, doubts };
}

function differences({ name, paths, format, sizeBytes }: NamedImage, node: ImageNode, identify: Identify): string[] {
  const [top, ...below] = paths;
  const found: string[] = [];
  const known = ["raw", "qcow2", "qed"].includes(node.format);
  if (known && node.format !== format) found.push(`${name}: QEMU takes ${top} as ${node.format}, not as ${format}`);
  const { "virtual-size": qemuBytes } = node;
  if (Math.ceil(sizeBytes / SECTOR_BYTES) !== Math.ceil(qemuBytes / SECTOR_BYTES)) {
    found.push(`${name}: QEMU's disk has ${qemuBytes} bytes, not ${sizeBytes}`);
  }
  const nodes = belowOf(node);
  const alike = nodes.length === below.length && nodes.every((it, index) => isSame(it, below[index], identify));
  if (!alike) found.push(`${name}: below ${top}, QEMU has ${nodes.map(nameOf).join(" over ") || "nothing"}`);
  return found;
}

/** Names that say nothing are taken for the same. */
function isSame({ filename }: ImageNode, path: string | undefined, identify: Identify): boolean {
  const theirs = identify(filename);
  const ours = path === undefined ? undefined : identify(path);
  return theirs === undefined || ours === undefined || theirs === ours;
}

function belowOf({ "backing-image": backing }: ImageNode): ImageNode[] {
  return backing === undefined ? [] : [backing, ...belowOf(backing)];
}

function nameOf({ filename }: ImageNode): string {
  return filename;
}
