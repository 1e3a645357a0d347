/** qemu-img as a client: convert both ways, compare, map, and formats laid over an export. */
import { statSync } from "node:fs";
import { afterAll, beforeAll, expect } from "vitest";
import { fileBytes, imageDifference, pattern } from "../../support/patterns.ts";
import { run, runOk } from "../../support/run.ts";
import { itWith } from "../../support/tools.ts";
import { CopyPlaces } from "./copy-places.ts";
import { KiB, MiB, parseQemuMap, runsOf, SPARSE_BYTES, SPARSE_REGIONS } from "./layout.ts";

const places = new CopyPlaces();
const { folder, source, target } = places;

beforeAll(() => places.begin());
afterAll(() => places[Symbol.asyncDispose]());

itWith(["qemu-img"], "convert from an export gives the same raw file", async () => {
  const copy = folder.file("copy.img");
  await runOk(["qemu-img", "convert", "-f", "raw", "-O", "raw", places.uri, copy]);
  expect(imageDifference(copy, SPARSE_BYTES, SPARSE_REGIONS)).toBeUndefined();
  expect(await runOk(["qemu-img", "compare", "-f", "raw", "-F", "raw", places.uri, copy])).toContain("identical");
});

itWith(["qemu-img"], "convert from an export to qcow2 and back into another export keeps every byte", async () => {
  await using to = await places.serveTarget();
  const qcow2 = folder.file("copy.qcow2");
  await runOk(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", places.uri, qcow2]);
  await runOk(["qemu-img", "check", qcow2]);
  await runOk(["qemu-img", "convert", "-n", "-t", "writeback", "-f", "qcow2", "-O", "raw", qcow2, to.uri]);
  expect(imageDifference(target, SPARSE_BYTES, SPARSE_REGIONS)).toBeUndefined();
});

itWith(["qemu-img"], "convert into an export with out-of-order writes and 16 coroutines", async () => {
  await using to = await places.serveTarget();
  await runOk([
    "qemu-img",
    "convert",
    "-n",
    "-W",
    "-m",
    "16",
    "-t",
    "writeback",
    "-f",
    "raw",
    "-O",
    "raw",
    source,
    to.uri,
  ]);
  expect(imageDifference(target, SPARSE_BYTES, SPARSE_REGIONS)).toBeUndefined();
  expect(parseQemuMap(await runOk(["qemu-img", "map", "--output=json", "-f", "raw", to.uri]))).toEqual(
    runsOf(SPARSE_BYTES, SPARSE_REGIONS),
  );
});

itWith(["qemu-img"], "convert -S 0 fills the target: nothing is left a hole", async () => {
  await using to = await places.serveTarget();
  await runOk(["qemu-img", "convert", "-n", "-S", "0", "-f", "raw", "-O", "raw", source, to.uri]);
  expect(imageDifference(target, SPARSE_BYTES, SPARSE_REGIONS)).toBeUndefined();
  expect(statSync(target).blocks * 512).toBeGreaterThanOrEqual(SPARSE_BYTES);
});

itWith(["qemu-img", "qemu-io", "nbdcopy"], "compare tells two exports apart by one byte", async () => {
  await using to = await places.serveTarget();
  const compare = ["qemu-img", "compare", "-f", "raw", "-F", "raw", places.uri, to.uri];
  await runOk(["nbdcopy", places.uri, to.uri]);
  expect((await run(compare)).status).toBe(0);
  await runOk(["qemu-io", "-f", "raw", "-c", `write -P 0x5a ${5 * MiB + 511} 1`, to.uri]);
  const result = await run(compare);
  expect(result.status).toBe(1);
  expect(result.stdout).toContain(`Content mismatch at offset ${5 * MiB + 511}!`);
});

itWith(["qemu-img", "qemu-io"], "a qcow2 image inside an export works: created, written, grown, checked", async () => {
  await using to = await places.serveTarget();
  await runOk(["qemu-img", "create", "-f", "qcow2", to.uri, "6M"]);
  await runOk(["qemu-io", "-f", "qcow2", "-c", "write -P 0xab 64k 1M", "-c", "flush", to.uri]);
  await runOk(["qemu-io", "-f", "qcow2", "-c", "read -P 0xab 64k 1M", "-c", "read -P 0 2M 64k", to.uri]);
  expect(await runOk(["qemu-img", "check", "-f", "qcow2", to.uri])).toContain("No errors");
  // The export itself stays raw, whatever a guest puts into it.
  expect(fileBytes(target, 0, 4).toString("latin1")).toBe("QFI\u00fb");
});

itWith(["qemu-img"], "dd and a partial read at an unaligned offset give the bytes of the file", async () => {
  const piece = folder.file("piece.img");
  const dd = ["qemu-img", "dd", "-f", "raw", "-O", "raw", "bs=64k", "skip=64", "count=72"];
  await runOk([...dd, `if=${places.uri}`, `of=${piece}`]);
  // qemu-img dd reads up to `count` blocks of the input in all, skipped ones included.
  expect(fileBytes(piece, 0, 512 * KiB).equals(pattern(4 * MiB, 512 * KiB))).toBe(true);
});
