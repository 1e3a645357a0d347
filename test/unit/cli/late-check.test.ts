/** Whether the images that were named are those that QEMU uses. */
import { expect, test } from "vitest";
import { compareWithQemu, type NamedImage } from "../../../src/cli/source/late-check.ts";
import type { ImageNode } from "../../../src/qmp/messages.ts";

const MiB = 2 ** 20;
const VDA: NamedImage = { name: "vda", paths: ["/vm/a.qcow2"], format: "qcow2", sizeBytes: MiB };

function node(filename: string, more: Partial<ImageNode> = {}): ImageNode {
  return { filename, format: "qcow2", "virtual-size": MiB, ...more };
}

/** Names of one file are alike but for what follows a "#". Relative ones say nothing. */
function identify(path: string): string | undefined {
  return path.startsWith("/") ? path.split("#")[0] : undefined;
}

function compare(named: NamedImage, ...used: ImageNode[]) {
  const inserted = used.map((image) => ({ inserted: { image } }));
  return compareWithQemu([named], [{}, ...inserted], identify);
}

test("the very image, by whatever name, below a filter or not, is fine", () => {
  const fine = { problems: [], doubts: [] };
  expect(compare(VDA, node("/vm/other.raw"), node("/vm/a.qcow2"))).toEqual(fine);
  expect(compare(VDA, node("/vm/a.qcow2#link"))).toEqual(fine);
  expect(compare(VDA, node("/vm/a.qcow2", { format: "throttle" }))).toEqual(fine);
  const below = { ...VDA, paths: ["/vm/a.qcow2", "/vm/base.raw"] as const };
  expect(compare(below, node("/vm/a.qcow2", { "backing-image": node("/vm/base.raw#x") }))).toEqual(fine);
  expect(compare(below, node("/vm/a.qcow2", { "backing-image": node("base.raw") }))).toEqual(fine);
});

test("QEMU counts in sectors", () => {
  const raw: NamedImage = { name: "vda", paths: ["/vm/a.raw"], format: "raw", sizeBytes: 1000 };
  const sectors = (count: number) =>
    compare(raw, node("/vm/a.raw", { format: "raw", "virtual-size": count * 512 })).problems;
  expect(sectors(2)).toEqual([]);
  expect(sectors(3)).toEqual(["vda: QEMU's disk has 1536 bytes, not 1000"]);
});

test("an image that QEMU does not use, has written over, or takes for something else is a problem", () => {
  const why = (...used: ImageNode[]): string => compare(VDA, ...used).problems.join();
  expect(why()).toContain("no image at all");
  expect(why(node("/vm/b.qcow2"))).toContain("does not use /vm/a.qcow2, but /vm/b.qcow2");
  expect(why(node("/vm/snap", { "backing-image": node("/vm/a.qcow2") }))).toContain(
    "QEMU writes to /vm/snap, which lies over /vm/a.qcow2",
  );
  expect(why(node("/vm/a.qcow2", { format: "raw" }))).toContain("as raw, not as qcow2");
  expect(why(node("/vm/a.qcow2", { "virtual-size": 2 * MiB }))).toContain(`${2 * MiB} bytes, not ${MiB}`);
  expect(why(node("/vm/a.qcow2", { "backing-image": node("/vm/base") }))).toContain("QEMU has /vm/base");
});

test("names that say nothing are a doubt, and no problem, unless the image itself is found", () => {
  expect(compare(VDA, node("a.qcow2"))).toMatchObject({ problems: [], doubts: [expect.stringContaining("vda")] });
  expect(compare(VDA, node("b.qcow2"), node("/vm/a.qcow2", { format: "raw" }))).toMatchObject({
    problems: [expect.stringContaining("as raw")],
    doubts: [],
  });
});
