import { describe, expect, test } from "vitest";
import { itSeeded } from "../../../support/seed.ts";
import { byteByByte, cutAt, seeded } from "../../../support/stream-pair.ts";
import { attempt, connected, EXPORT, haggle, refused } from "./attempt.ts";
import { cat, ERR, type HandshakeScript, OPT, optionReply, REP, text, u16, u32, u64 } from "./scripted-server.ts";

describe("a handshake", () => {
  test("with a modern server takes extended headers and the contexts it offers", async () => {
    const tried = attempt({ metaContexts: ["x-blockferry:presence"] });
    await tried.server.handshake({ dialect: "extended", contexts: ["base:allocation", "x-blockferry:presence"] });
    const client = await connected(tried);
    expect(client.dialect).toBe("extended");
    expect([...client.contexts]).toEqual(["base:allocation", "x-blockferry:presence"]);
    expect(client.sizeBytes).toBe(1 << 20);
    expect(client.secure).toBe(false);
  });

  test("echoes the flags it knows, and no others", async () => {
    for (const [offered, echoed] of [
      [3, 3],
      [1, 1],
      [0xffff, 3],
      [2, 2],
      [0, 0],
    ] as const) {
      const { server } = attempt();
      expect(await server.greet(offered)).toBe(echoed);
    }
  });

  test("asks about the contexts of the export that it will open, base:allocation among them", async () => {
    const tried = attempt({ exportName: "vdä", metaContexts: ["x-a:b", "base:allocation"] });
    await tried.server.greet();
    await tried.server.answer(OPT.extended, REP.ack);
    const data = await tried.server.expect(OPT.setMeta);
    expect(data).toEqual(cat(u32(4), text("vdä"), u32(2), u32(15), text("base:allocation"), u32(5), text("x-a:b")));
    tried.server.reply(OPT.setMeta, REP.ack);
    expect((await tried.server.expect(OPT.go)).subarray(0, 8)).toEqual(cat(u32(4), text("vdä")));
  });

  test("does without what the server does not know, refuses, or forbids", async () => {
    for (const error of [
      ERR.unsup,
      ERR.policy,
      ERR.invalid,
      ERR.platform,
      ERR.tooBig,
      ERR.extHeaderReqd,
      0x8000_1234,
    ]) {
      const tried = attempt();
      await tried.server.greet();
      await tried.server.answer(OPT.extended, error, text("no"));
      await tried.server.answer(OPT.structured, REP.ack);
      await tried.server.expect(OPT.setMeta);
      // What came before an error does not count.
      tried.server.reply(OPT.setMeta, REP.meta, u32(1), text("base:allocation"));
      tried.server.reply(OPT.setMeta, error);
      await tried.server.expect(OPT.go);
      tried.server.send(optionReply(OPT.go, REP.info, EXPORT()), optionReply(OPT.go, REP.ack));
      const client = await connected(tried);
      expect(client.dialect).toBe("structured");
      expect(client.contexts.size).toBe(0);
      expect(client.capabilities.extents).toBe(false);
    }
  });

  test("asks for no contexts when replies are simple", async () => {
    const tried = attempt();
    await tried.server.handshake({ dialect: "simple" });
    expect((await connected(tried)).dialect).toBe("simple");
  });

  test("asks for no newer headers than it may", async () => {
    const tried = attempt({ dialectMax: "simple" });
    await tried.server.greet();
    await tried.server.expect(OPT.go);
    tried.server.send(optionReply(OPT.go, REP.info, EXPORT()), optionReply(OPT.go, REP.ack));
    expect((await connected(tried)).dialect).toBe("simple");
  });

  test("takes block sizes, a description and the canonical name, and ignores information it does not know", async () => {
    const tried = attempt();
    await haggle(tried.server);
    await tried.server.expect(OPT.go);
    tried.server.reply(OPT.go, REP.info, u16(77), text("who knows"));
    tried.server.reply(OPT.go, REP.info, u16(3), u32(512), u32(65_536), u32(1 << 20));
    tried.server.reply(OPT.go, REP.info, EXPORT(8192, 0x3));
    tried.server.reply(OPT.go, REP.info, u16(1), text("the disk"));
    tried.server.reply(OPT.go, REP.info, u16(2), text("of Anna"));
    tried.server.reply(OPT.go, REP.ack);
    const client = await connected(tried);
    expect(client.info).toEqual({
      name: "disk",
      sizeBytes: 8192,
      flags: 3,
      blockSizes: { minimum: 512, preferred: 65_536, maximum: 1 << 20 },
      canonicalName: "the disk",
      description: "of Anna",
    });
    expect(client.capabilities).toMatchObject({ readOnly: true, blockSizes: { minimum: 512, preferred: 65_536 } });
  });

  test("survives being cut into pieces at every position", async () => {
    // Count first, then cut at each byte that the server sends.
    const script: HandshakeScript = { contexts: ["base:allocation"], blockSizes: [1, 4096, 1 << 20] };
    const plain = attempt();
    await plain.server.handshake(script);
    await connected(plain);
    const total = plain.server.stream.deliveredBytes;
    expect(total).toBeGreaterThan(150);
    for (let at = 1; at < total; at++) {
      const tried = attempt({}, { clientCut: cutAt(at), serverCut: byteByByte });
      await tried.server.handshake(script);
      expect((await connected(tried)).sizeBytes).toBe(1 << 20);
    }
  });

  itSeeded("survives being cut into pieces anywhere", async (rng) => {
    for (let round = 0; round < 50; round++) {
      const tried = attempt({}, { clientCut: seeded(rng), serverCut: seeded(rng) });
      await tried.server.handshake({ dialect: rng.pick(["simple", "structured", "extended"]) });
      await connected(tried);
    }
  });
});

describe("older servers", () => {
  test("without GO are entered by EXPORT_NAME, reading 124 zeroes where they were not waived", async () => {
    for (const [flags, zeroes] of [
      [1, 124],
      [3, 0],
    ] as const) {
      const tried = attempt();
      await tried.server.greet(flags);
      await tried.server.answer(OPT.extended, ERR.unsup);
      await tried.server.answer(OPT.structured, ERR.unsup);
      await tried.server.answer(OPT.go, ERR.unsup);
      expect(await tried.server.expect(OPT.exportName)).toEqual(text("disk"));
      tried.server.send(u64(12_345), u16(1), Buffer.alloc(zeroes));
      const client = await connected(tried);
      expect(client.sizeBytes).toBe(12_345);
      expect(client.info.blockSizes).toEqual({ minimum: 1, preferred: 4096, maximum: 32 * 1024 * 1024 });
    }
  });

  test("without the fixed handshake are asked for nothing but the export", async () => {
    const tried = attempt();
    expect(await tried.server.greet(0)).toBe(0);
    expect(await tried.server.expect(OPT.exportName)).toEqual(text("disk"));
    tried.server.send(u64(512), u16(1), Buffer.alloc(124));
    expect((await connected(tried)).sizeBytes).toBe(512);
  });

  test("that hang up on EXPORT_NAME get an explanation", async () => {
    const tried = attempt();
    await tried.server.greet(0);
    await tried.server.expect(OPT.exportName);
    tried.server.stream.destroy();
    expect((await refused(tried, "closed")).hint).toMatch(/no export of that name/);
  });

  test("with the oldstyle handshake are refused by name", async () => {
    const tried = attempt();
    tried.server.send(text("NBDMAGIC"), Buffer.from("00420281861253".padStart(16, "0"), "hex"), u64(4096));
    expect((await refused(tried, "oldstyle")).why).toMatch(/oldstyle/);
  });

  test("GO must be known to a server with extended headers", async () => {
    const tried = attempt();
    await tried.server.greet();
    await tried.server.answer(OPT.extended, REP.ack);
    await tried.server.answer(OPT.setMeta, REP.ack);
    await tried.server.answer(OPT.go, ERR.unsup);
    await refused(tried, "unsupported");
  });
});
