/** nbdcopy in every direction, over a socket of ours and over one that it hands us; holes stay holes. */
import { statSync, truncateSync, writeFileSync } from "node:fs";
import { afterAll, beforeAll, expect } from "vitest";
import { imageDifference, makeImage } from "../../support/patterns.ts";
import { runOk } from "../../support/run.ts";
import { BLOCKFERRY, startServe } from "../../support/serve-process.ts";
import { itWith } from "../../support/tools.ts";
import { CopyPlaces } from "./copy-places.ts";
import { KiB, MiB, SPARSE_BYTES, SPARSE_REGIONS } from "./layout.ts";

const places = new CopyPlaces();
const { folder, source, target } = places;
const local = folder.file("local.img");
const DATA_BYTES = SPARSE_REGIONS.reduce((sum, { length }) => sum + length, 0);
/** File systems allocate a little more than the data: extent blocks, rounding. */
const ALLOCATION_SLACK_BYTES = 64 * KiB;

beforeAll(() => places.begin());
afterAll(() => places[Symbol.asyncDispose]());

function allocatedBytes(path: string): number {
  return statSync(path).blocks * 512;
}

function expectSparseCopy(path: string): void {
  expect(imageDifference(path, SPARSE_BYTES, SPARSE_REGIONS)).toBeUndefined();
  expect(allocatedBytes(path)).toBeLessThanOrEqual(DATA_BYTES + ALLOCATION_SLACK_BYTES);
}

itWith(["nbdcopy"], "export to file: every byte, and no more space than the data", async () => {
  makeImage(local, SPARSE_BYTES, [{ offset: 0, length: SPARSE_BYTES, salt: 98 }]);
  await runOk(["nbdcopy", places.uri, local]);
  expectSparseCopy(local);
});

itWith(["nbdcopy"], "file to export: zeroes become holes in the image", async () => {
  await using to = await places.serveTarget();
  await runOk(["nbdcopy", "--flush", source, to.uri]);
  expectSparseCopy(target);
});

itWith(["nbdcopy"], "export to export, on four connections each", async () => {
  await using to = await places.serveTarget();
  await runOk(["nbdcopy", "--flush", "--connections=4", "--threads=4", places.uri, to.uri]);
  expectSparseCopy(target);
});

itWith(["nbdcopy"], "with --allocated the zeroes are provisioned", async () => {
  await using to = await places.serveTarget();
  await runOk(["nbdcopy", "--allocated", source, to.uri]);
  expect(imageDifference(target, SPARSE_BYTES, SPARSE_REGIONS)).toBeUndefined();
  expect(allocatedBytes(target)).toBeGreaterThanOrEqual(SPARSE_BYTES);
});

itWith(["nbdcopy"], "a size that is no multiple of anything, in small synchronous requests", async () => {
  const oddBytes = 3 * MiB + 1234;
  const odd = folder.file("odd.img");
  makeImage(odd, oddBytes);
  await using server = await startServe({ image: odd, socket: folder.file("odd.sock") });
  await runOk(["nbdcopy", "--synchronous", "--request-size=65536", server.uri, folder.file("odd-copy.img")]);
  // A smaller source on a larger target is refused by nbdcopy itself; equal sizes work the other way round too.
  expect(imageDifference(folder.file("odd-copy.img"), oddBytes, [{ offset: 0, length: oddBytes, salt: 1 }])).toBe(
    undefined,
  );
  makeImage(odd, oddBytes, []);
  await runOk(["nbdcopy", "--request-size=65536", folder.file("odd-copy.img"), server.uri]);
  expect(imageDifference(odd, oddBytes, [{ offset: 0, length: oddBytes, salt: 1 }])).toBeUndefined();
});

itWith(
  ["nbdcopy"],
  "a server started by nbdcopy, on a socket that it hands over, serves and ends with it",
  async () => {
    makeImage(local, SPARSE_BYTES, [{ offset: 0, length: SPARSE_BYTES, salt: 98 }]);
    await runOk(["nbdcopy", "--", "[", BLOCKFERRY, "serve", "-r", local, "]", "null:"]);
    await runOk(["nbdcopy", "--", "[", BLOCKFERRY, "serve", "-r", local, "]", folder.file("activated.img")]);
    const expected = [{ offset: 0, length: SPARSE_BYTES, salt: 98 }];
    expect(imageDifference(folder.file("activated.img"), SPARSE_BYTES, expected)).toBeUndefined();
  },
);

itWith(["nbdcopy", "nbdinfo"], "socket activation works for writing and for nbdinfo", async () => {
  const image = folder.file("activated-target.img");
  writeFileSync(image, "");
  truncateSync(image, SPARSE_BYTES);
  await runOk(["nbdcopy", "--flush", "--", source, "[", BLOCKFERRY, "serve", image, "]"]);
  expectSparseCopy(image);
  expect((await runOk(["nbdinfo", "--size", "--", "[", BLOCKFERRY, "serve", "-r", image, "]"])).trim()).toBe(
    String(SPARSE_BYTES),
  );
});
