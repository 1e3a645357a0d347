import { expect, test } from "vitest";
import { imageInfo, renderInfo, renderInfoJson } from "../../../src/image/info.ts";
import { imageMap, type MapEntry, renderMap, renderMapJson } from "../../../src/image/map.ts";
import { EXTENT_SEEKS_MAX } from "../../../src/image/raw.ts";
import { FAKE_BLOCK_BYTES, FakeFiles } from "../../support/fake-files.ts";
import { pattern } from "../../support/patterns.ts";

const PATH = "/vm/disk.raw";
const MIB = 1024 * 1024;

/** 64 KiB of hole, 128 KiB of data, hole up to 10 MiB. */
function sparse(): FakeFiles {
  const files = new FakeFiles();
  files.add(PATH, 10 * MIB).put(65_536, pattern(65_536, 131_072));
  return files;
}

async function collect<T>(items: AsyncIterable<T>): Promise<T[]> {
  const all: T[] = [];
  for await (const item of items) all.push(item);
  return all;
}

async function text(pieces: AsyncIterable<string>): Promise<string> {
  return (await collect(pieces)).join("");
}

test("info is told in the words and the order of qemu-img", async () => {
  const info = await imageInfo({ files: sparse() }, { path: PATH });
  expect(renderInfo(info)).toBe(
    "image: /vm/disk.raw\nfile format: raw\nvirtual size: 10 MiB (10485760 bytes)\ndisk size: 128 KiB\n",
  );
  expect(renderInfoJson(info)).toBe(`{
    "virtual-size": 10485760,
    "filename": "/vm/disk.raw",
    "format": "raw",
    "actual-size": 131072,
    "dirty-flag": false
}
`);
});

test("sizes are rounded as qemu-img rounds them, a half to the even digit", async () => {
  const said = async (sizeBytes: number): Promise<string | undefined> => {
    const files = new FakeFiles();
    files.add(PATH, sizeBytes);
    return /virtual size: (.*) \(/.exec(renderInfo(await imageInfo({ files }, { path: PATH })))?.[1];
  };
  expect(await said(1.125 * MIB)).toBe("1.12 MiB");
  expect(await said(1.375 * MIB)).toBe("1.38 MiB");
  expect(await said(12.25 * MIB)).toBe("12.2 MiB");
  expect(await said(12.75 * MIB)).toBe("12.8 MiB");
  expect(await said(100.5 * MIB)).toBe("100 MiB");
  expect(await said(101.5 * MIB)).toBe("102 MiB");
  expect(await said(1000 * 1000)).toBe("977 KiB");
  expect(await said(512)).toBe("512 B");
});

test("info says when a format was nobody's choice", async () => {
  const files = new FakeFiles();
  files.add("/vm/disk", 1000);
  expect(await imageInfo({ files }, { path: "/vm/disk" })).toMatchObject({
    format: "raw",
    virtualBytes: 1000,
    notice: expect.stringContaining("raw"),
  });
  expect(await imageInfo({ files }, { path: "/vm/disk", format: "raw" })).not.toHaveProperty("notice");
});

test("info and map look at an image that somebody else has locked, and leave nothing open", async () => {
  const files = sparse();
  const writer = await files.open({ path: PATH, writable: true });
  await writer.lock("exclusive");
  await imageInfo({ files }, { path: PATH });
  await collect(imageMap({ files }, { path: PATH }));
  // A loop that is left early closes the image as well.
  for await (const _ of imageMap({ files }, { path: PATH })) break;
  expect(files.count("open")).toBe(4);
  expect(files.count("close")).toBe(3);
  expect(files.count("write")).toBe(0);
});

test("map is told in the forms of qemu-img", async () => {
  const files = sparse();
  expect(await text(renderMapJson(imageMap({ files }, { path: PATH })))).toBe(
    `[{ "start": 0, "length": 65536, "depth": 0, "present": true, "zero": true, "data": false, "offset": 0},
{ "start": 65536, "length": 131072, "depth": 0, "present": true, "zero": false, "data": true, "offset": 65536},
{ "start": 196608, "length": 10289152, "depth": 0, "present": true, "zero": true, "data": false, "offset": 196608}]
`,
  );
  expect(await text(renderMap(imageMap({ files }, { path: PATH })))).toBe(
    "Offset          Length          Mapped to       File\n" +
      "0x10000         0x20000         0x10000         /vm/disk.raw\n",
  );
});

test("map can be asked about a part, and an empty part has no entries", async () => {
  const files = sparse();
  const part = await collect(imageMap({ files }, { path: PATH, start: 100_000, lengthMax: 200_000 }));
  expect(part.map(({ start, length, data }) => [start, length, data])).toEqual([
    [100_000, 96_608, true],
    [196_608, 103_392, false],
  ]);
  expect(await collect(imageMap({ files }, { path: PATH, start: 10 * MIB }))).toEqual([]);
  files.add(PATH, 0);
  expect(await text(renderMapJson(imageMap({ files }, { path: PATH })))).toBe("[]\n");
});

test("a run that takes many questions is one entry, and runs add up to the image", async () => {
  const files = new FakeFiles();
  const runs = 3 * EXTENT_SEEKS_MAX;
  const disk = files.add(PATH, 2 * runs * FAKE_BLOCK_BYTES);
  for (let run = 0; run < runs; run++) disk.put(2 * run * FAKE_BLOCK_BYTES, pattern(0, 1));
  const entries: MapEntry[] = await collect(imageMap({ files }, { path: PATH }));
  expect(entries).toHaveLength(2 * runs);
  expect(entries.every((entry, index) => entry.data === (index % 2 === 0))).toBe(true);
  expect(entries.reduce((sum, entry) => sum + entry.length, 0)).toBe(disk.size);
});
