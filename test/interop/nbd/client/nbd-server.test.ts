import { describe, expect } from "vitest";
import { listExports } from "../../../../src/nbd/client/list-exports.ts";
import { fileBytes, makeImage, pattern } from "../../../support/patterns.ts";
import { nbdServer, realWorld } from "../../../support/peers.ts";
import { itWith } from "../../../support/tools.ts";
import { bytesOf, outcomeOf } from "./outcome.ts";

const MIB = 1 << 20;
const it = (title: string, body: () => Promise<void>): void => itWith(["nbd-server"], title, body);
const ALL = ["flush = true", "fua = true", "trim = true", "rotational = true"];

describe("with the reference server", () => {
  it("a disk can be read, written, zeroed, trimmed and flushed", async () => {
    await using peer = await nbdServer((image) => makeImage(image, 16 * MIB), ALL);
    await using client = await peer.open({ exportName: "disk" });
    expect(client.sizeBytes).toBe(16 * MIB);
    expect(client.capabilities.rotational).toBe(true);
    expect((await bytesOf(client, 0, 16 * MIB)).equals(pattern(0, 16 * MIB))).toBe(true);
    await client.write(MIB + 1, pattern(MIB + 1, 2 * MIB, 2), { fua: true });
    await client.writeZeroes(5 * MIB, MIB);
    await client.discard(8 * MIB, MIB);
    await client.flush();
    const image = peer.folder.file("disk.img");
    expect(fileBytes(image, MIB + 1, 2 * MIB).equals(pattern(MIB + 1, 2 * MIB, 2))).toBe(true);
    expect((await bytesOf(client, 5 * MIB, MIB)).equals(Buffer.alloc(MIB))).toBe(true);
    expect(await client.extents(0, 16 * MIB, 4)).toHaveLength(1);
  });

  it("many requests at a time are answered, each its own way", async () => {
    await using peer = await nbdServer((image) => makeImage(image, 16 * MIB), ALL);
    await using client = await peer.open({ exportName: "disk" });
    const works = Array.from({ length: 200 }, async (_, index) => {
      const at = index * 65_536 + index;
      if (index % 2 === 0) return (await bytesOf(client, at, 5000)).equals(pattern(at, 5000));
      await client.write(at, pattern(at, 5000, 9));
      return (await bytesOf(client, at, 5000)).equals(pattern(at, 5000, 9));
    });
    expect(new Set(await Promise.all(works))).toEqual(new Set([true]));
  });

  it("what it does not offer is made up for", async () => {
    await using peer = await nbdServer((image) => makeImage(image, MIB));
    await using client = await peer.open({ exportName: "disk" });
    await client.write(0, pattern(0, 4096, 2), { fua: true });
    await client.writeZeroes(4096, 4096);
    await client.discard(0, 4096);
    expect(
      (await bytesOf(client, 0, 12_288)).equals(
        Buffer.concat([pattern(0, 4096, 2), Buffer.alloc(4096), pattern(8192, 4096)]),
      ),
    ).toBe(true);
  });

  it("a read-only export and an unknown name are told", async () => {
    await using peer = await nbdServer((image) => makeImage(image, MIB), ["readonly = true"]);
    await using client = await peer.open({ exportName: "disk" });
    expect(client.capabilities.readOnly).toBe(true);
    expect(await outcomeOf(peer.open({ exportName: "other" }))).toMatchObject({ name: "NbdConnectError" });
  });

  it("exports are listed where its configuration allows it, and only there", async () => {
    await using open = await nbdServer((image) => makeImage(image, MIB));
    expect(await listExports(realWorld, { address: open.address })).toEqual([{ name: "disk" }]);
    // It answers INFO with a size of 0 (nbdinfo shows that, too); that it answers is enough here.
    const details = await listExports(realWorld, { address: open.address, details: true });
    expect(details).toMatchObject([{ name: "disk", info: { name: "disk" } }]);
    await using closed = await nbdServer((image) => makeImage(image, MIB), [], false);
    expect(await outcomeOf(listExports(realWorld, { address: closed.address }))).toMatchObject({ code: "policy" });
  });
});
