import { describe, expect } from "vitest";
import { listExports } from "../../../../src/nbd/client/list-exports.ts";
import { fileBytes, makeImage, pattern } from "../../../support/patterns.ts";
import { qemuNbd, realWorld } from "../../../support/peers.ts";
import { runOk } from "../../../support/run.ts";
import { itWith } from "../../../support/tools.ts";
import { bytesOf, outcomeOf } from "./outcome.ts";

const MIB = 1 << 20;
const it = (title: string, body: () => Promise<void>): void => itWith(["qemu-nbd", "qemu-img"], title, body);

/** "qemu-nbd 7.2.19 (Debian …)" → 7.2 */
async function qemuVersion(): Promise<number> {
  return Number(/^qemu-nbd (\d+\.\d+)/.exec(await runOk(["qemu-nbd", "--version"]))?.[1]);
}

describe("with qemu-nbd", () => {
  it("a raw disk can be read, written, zeroed, trimmed, flushed and mapped", async () => {
    const regions = [
      { offset: 0, length: MIB, salt: 1 },
      { offset: 8 * MIB, length: MIB, salt: 2 },
    ];
    await using peer = await qemuNbd((image) => makeImage(image, 32 * MIB, regions), "-x", "vda", "--discard=unmap");
    await using client = await peer.open({ exportName: "vda" });
    expect(client.dialect).toBe((await qemuVersion()) >= 8.2 ? "extended" : "structured");
    expect(client.sizeBytes).toBe(32 * MIB);
    expect((await bytesOf(client, 8 * MIB, MIB)).equals(pattern(8 * MIB, MIB, 2))).toBe(true);
    expect(await client.extents(0, 32 * MIB, 10)).toEqual([
      { length: MIB, hole: false, zero: false },
      { length: 7 * MIB, hole: true, zero: true },
      { length: MIB, hole: false, zero: false },
      { length: 23 * MIB, hole: true, zero: true },
    ]);
    await client.write(20 * MIB, pattern(20 * MIB, 3 * MIB, 3), { fua: true });
    await client.write(16 * MIB + 1, pattern(16 * MIB + 1, 4999, 3));
    await client.writeZeroes(21 * MIB, MIB);
    await client.discard(0, MIB);
    await client.flush();
    const image = peer.folder.file("disk.img");
    expect(fileBytes(image, 20 * MIB, MIB).equals(pattern(20 * MIB, MIB, 3))).toBe(true);
    expect(fileBytes(image, 16 * MIB + 1, 4999).equals(pattern(16 * MIB + 1, 4999, 3))).toBe(true);
    expect(fileBytes(image, 21 * MIB, MIB).equals(Buffer.alloc(MIB))).toBe(true);
    expect(fileBytes(image, 0, MIB).equals(Buffer.alloc(MIB))).toBe(true);
  });

  it("a qcow2 disk tells its extents, and reads come with holes in them", async () => {
    const make = (image: string) => runOk(["qemu-img", "create", "-q", "-f", "qcow2", image, "64M"]);
    await using peer = await qemuNbd(make, "-f", "qcow2");
    await using client = await peer.open();
    for (let at = 0; at < 64 * MIB; at += 131_072) await client.write(at, pattern(at, 65_536));
    const expected = Buffer.alloc(64 * MIB);
    for (let at = 0; at < 64 * MIB; at += 131_072) pattern(at, 65_536).copy(expected, at);
    expect((await bytesOf(client, 0, 64 * MIB)).equals(expected)).toBe(true);
    const extents = await client.extents(0, 64 * MIB, 5000);
    expect(extents).toHaveLength(1024);
    expect(
      extents.every(
        ({ length, hole, zero }, index) => length === 65_536 && hole === (index % 2 === 1) && zero === hole,
      ),
    ).toBe(true);
  });

  it("a read-only export is known as such, and an unknown one is refused by name", async () => {
    await using peer = await qemuNbd((image) => makeImage(image, MIB), "-r", "-x", "disk", "-D", "Anna's disk");
    await using client = await peer.open({ exportName: "disk" });
    expect(client.capabilities.readOnly).toBe(true);
    expect(await outcomeOf(client.write(0, pattern(0, 512)))).toMatchObject({ code: "read-only" });
    expect(await outcomeOf(peer.open({ exportName: "other" }))).toMatchObject({ code: "unknown-export" });
    const [listed] = await listExports(realWorld, { address: peer.address, details: true });
    expect(listed).toMatchObject({ name: "disk", description: "Anna's disk", info: { sizeBytes: MIB } });
    expect(listed?.contexts).toContain("base:allocation");
  });

  it("its own contexts can be asked for", async () => {
    const context = "qemu:allocation-depth";
    await using peer = await qemuNbd((image) => makeImage(image, MIB), "-A");
    await using client = await peer.open({ metaContexts: [context, "x-no:such"] });
    expect([...client.contexts].sort()).toEqual(["base:allocation", context]);
    const [first] = await client.blockStatus(context, 0, MIB, { reqOne: true });
    expect(first).toEqual({ length: MIB, flags: 1 });
    expect(await client.extents(0, MIB, 8)).toEqual([{ length: MIB, hole: false, zero: false }]);
  });

  it("a disk whose size is no multiple of anything has what qemu makes of it", async () => {
    await using peer = await qemuNbd((image) => makeImage(image, 100_001));
    await using client = await peer.open();
    expect(client.sizeBytes).toBe(100_352);
    const expected = Buffer.concat([pattern(99_000, 1001), Buffer.alloc(351)]);
    expect((await bytesOf(client, 99_000, 1352)).equals(expected)).toBe(true);
    await client.write(100_000, pattern(100_000, 300));
    expect((await bytesOf(client, 100_000, 300)).equals(pattern(100_000, 300))).toBe(true);
  });
});
