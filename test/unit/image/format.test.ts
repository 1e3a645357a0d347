import { expect, test } from "vitest";
import { chooseFormat, IMAGE_FORMATS, type ImageFormat, openImage } from "../../../src/image/format.ts";
import { openRaw } from "../../../src/image/raw.ts";
import { FakeFiles } from "../../support/fake-files.ts";
import { pattern } from "../../support/patterns.ts";

/** Headers that a guest could write to the start of its raw disk. */
const HEADERS = { qcow2: "QFI\xfb\0\0\0\x03", qed: "QED\0\0\0\x01\0", vmdk: "KDMV" };

test("the extension decides, in any case of letters, and the operator decides before it", () => {
  expect(chooseFormat("/vm/a.raw")).toMatchObject({ format: { name: "raw" }, origin: "extension" });
  expect(chooseFormat("/vm/a.IMG")).toMatchObject({ format: { name: "raw" }, origin: "extension" });
  expect(chooseFormat("a.qcow2")).toMatchObject({ format: { name: "qcow2" }, origin: "extension" });
  expect(chooseFormat("/vm/a.qed")).toMatchObject({ format: { name: "qed" }, origin: "extension" });
  expect(chooseFormat("/vm/a.qcow2", "raw")).toMatchObject({ format: { name: "raw" }, origin: "operator" });
  expect(chooseFormat("/vm/a.raw", "qcow2")).toMatchObject({ format: { name: "qcow2" }, origin: "operator" });
});

test("anything else is raw, and that is said", () => {
  for (const path of ["/dev/vg/disk", "/vm/disk", "/vm/a.vmdk", "/vm.qcow2/disk", "/vm/.qcow2", "a.raw.bak"]) {
    const choice = chooseFormat(path);
    expect(choice, path).toMatchObject({ format: { name: "raw" }, origin: "default" });
    expect(choice.notice, path).toContain(`${path} is taken as a raw image`);
  }
  expect(chooseFormat("/vm/a.raw").notice).toBeUndefined();
  expect(chooseFormat("/vm/disk", "raw").notice).toBeUndefined();
});

test("a format that nobody knows is refused with the names of those that are known", () => {
  expect(() => chooseFormat("/vm/a.raw", "vdi")).toThrow(
    expect.objectContaining({ code: "unknown-format", hint: expect.stringContaining("raw") }),
  );
});

test("formats that this build cannot open are refused before anything is opened", async () => {
  const formats: ImageFormat[] = [...IMAGE_FORMATS, { name: "vmdk", extensions: [".vmdk"], flat: false }];
  for (const name of formats.filter((format) => format.open === undefined).map((format) => format.name)) {
    const files = new FakeFiles();
    files.add(`/vm/a.${name}`, 65_536);
    const attempt = openImage({ files }, { path: `/vm/a.${name}`, readOnly: true, formats });
    await expect(attempt).rejects.toMatchObject({
      name: "ImageOpenError",
      code: "unsupported-format",
      why: `${name} images are not supported yet by this build`,
    });
    expect(files.log).toEqual([]);
  }
});

test("contents never decide: a raw disk whose guest wrote another format's header stays raw", async () => {
  for (const [name, header] of Object.entries(HEADERS)) {
    const files = new FakeFiles();
    const content = Buffer.concat([Buffer.from(header, "latin1"), pattern(0, 65_000)]);
    files.add("/vm/disk", content);
    const { image, format } = await openImage({ files }, { path: "/vm/disk", readOnly: true });
    const found = Buffer.alloc(content.length);
    await image.read(0, found);
    expect([format.name, image.sizeBytes], name).toEqual(["raw", content.length]);
    expect(found.equals(content)).toBe(true);
    // Nothing was read in order to open it.
    expect(files.log.slice(0, files.log.indexOf(`read 0+${content.length}`))).toEqual([
      "open /vm/disk",
      "lock shared",
      "sizeBytes",
    ]);
  }
});

test("another format is one more entry of the table", async () => {
  const files = new FakeFiles();
  files.add("/vm/a.cow", 4096);
  const cow: ImageFormat = { name: "cow", extensions: [".cow"], flat: false, open: openRaw };
  const request = { path: "/vm/a.cow", readOnly: true, formats: [...IMAGE_FORMATS, cow] };
  const { image, format, origin } = await openImage({ files }, request);
  expect([format.name, origin, image.sizeBytes]).toEqual(["cow", "extension", 4096]);
  await image.close();
});
