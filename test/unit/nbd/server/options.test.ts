import { describe, expect, test } from "vitest";
import { MemoryDevice } from "../../../../src/block/memory.ts";
import { CMD, contextData, infoData, OPT, type OptionReply, option, REP, u32 } from "../../../support/nbd-wire.ts";
import { ServerRig } from "../../../support/server-rig.ts";
import { BASE, EXPORTS, expectAlive, greeted, infoOf, MIB } from "./handshake-fixture.ts";

const names = (replies: readonly OptionReply[]) =>
  replies
    .filter(({ type }) => type === REP.SERVER)
    .map(({ data }) => [
      data.toString("utf8", 4, 4 + data.readUInt32BE(0)),
      data.toString("utf8", 4 + data.readUInt32BE(0)),
    ]);

describe("one option, and what it is answered", () => {
  const long = (bytes: number) => "a".repeat(bytes);
  const badUtf8 = Buffer.from([0x64, 0xc3, 0x28]);
  const cases: readonly [string, number, Buffer | string, number][] = [
    ["LIST", OPT.LIST, "", REP.ACK],
    ["LIST with data", OPT.LIST, "x", REP.INVALID],
    ["STARTTLS without credentials", OPT.STARTTLS, "", REP.POLICY],
    ["STARTTLS with data", OPT.STARTTLS, "x", REP.INVALID],
    ["STRUCTURED_REPLY", OPT.STRUCTURED_REPLY, "", REP.ACK],
    ["STRUCTURED_REPLY with data", OPT.STRUCTURED_REPLY, "x", REP.INVALID],
    ["EXTENDED_HEADERS", OPT.EXTENDED_HEADERS, "", REP.ACK],
    ["EXTENDED_HEADERS with data", OPT.EXTENDED_HEADERS, "x", REP.INVALID],
    ["an option that does not exist", 4, "", REP.UNSUP],
    ["option 0 with data", 0, "anything", REP.UNSUP],
    ["option 2^32−1", 0xffff_ffff, "", REP.UNSUP],
    ["INFO", OPT.INFO, infoData("disk"), REP.ACK],
    ["INFO of a name that is not exported", OPT.INFO, infoData("disk2"), REP.UNKNOWN],
    ["GO to a name that is not exported", OPT.GO, infoData("disk2"), REP.UNKNOWN],
    ["GO to a prefix of a name", OPT.GO, infoData("dis"), REP.UNKNOWN],
    ["GO to a name in other letters", OPT.GO, infoData("DISK"), REP.UNKNOWN],
    ["GO to a path", OPT.GO, infoData("/disk"), REP.UNKNOWN],
    ["INFO of 4096 bytes of name", OPT.INFO, infoData(long(4096)), REP.UNKNOWN],
    ["INFO of 4097 bytes of name", OPT.INFO, infoData(long(4097)), REP.INVALID],
    ["INFO with a NUL in the name", OPT.INFO, infoData("disk\0"), REP.INVALID],
    ["INFO with a name that is not UTF-8", OPT.INFO, infoData(badUtf8), REP.INVALID],
    ["INFO with an overlong encoding", OPT.INFO, infoData(Buffer.from([0xc1, 0xa4])), REP.INVALID],
    ["INFO with half a surrogate pair", OPT.INFO, infoData(Buffer.from([0xed, 0xa0, 0x80])), REP.INVALID],
    ["INFO without data", OPT.INFO, "", REP.INVALID],
    ["INFO with a name longer than the option", OPT.INFO, Buffer.concat([u32(99), infoData("disk")]), REP.INVALID],
    ["INFO with a name length of 2^32−1", OPT.INFO, u32(0xffff_ffff), REP.INVALID],
    ["INFO without a count", OPT.INFO, Buffer.concat([u32(4), Buffer.from("disk")]), REP.INVALID],
    ["INFO with a count too large", OPT.INFO, Buffer.concat([u32(0), Buffer.from([0, 2, 0, 1])]), REP.INVALID],
    ["INFO with a count too small", OPT.INFO, Buffer.concat([infoData("disk"), Buffer.from([0])]), REP.INVALID],
    ["INFO with types nobody knows", OPT.INFO, infoData("disk", [99, 1000]), REP.ACK],
    ["LIST_META_CONTEXT before structured replies", OPT.LIST_META_CONTEXT, contextData("disk"), REP.INVALID],
    ["SET_META_CONTEXT before structured replies", OPT.SET_META_CONTEXT, contextData("disk", [BASE]), REP.INVALID],
  ];
  for (const [title, type, data, outcome] of cases) {
    test(title, async () => {
      const { client } = await greeted();
      expect(await client.optionOutcome(type, data)).toBe(outcome);
      await expectAlive(client);
    });
  }
});

describe("LIST", () => {
  test("names every export in a reply of its own, with its description", async () => {
    const { client } = await greeted();
    const replies = await client.option(OPT.LIST);
    expect(names(replies)).toEqual([
      ["", ""],
      ["disk", "the first disk"],
      ["disk/ro", ""],
      ["ünïcode", ""],
    ]);
    expect(replies.at(-1)).toMatchObject({ type: REP.ACK, data: Buffer.alloc(0) });
  });
});

describe("INFO and GO", () => {
  test("tell the size and flags always, and the rest when asked", async () => {
    const { client } = await greeted();
    const plain = await client.option(OPT.INFO, infoData("disk"));
    expect(infoOf(plain, 0)?.readBigUInt64BE(0)).toBe(BigInt(8 * MIB));
    expect(plain.length).toBe(2);
    const full = await client.option(OPT.INFO, infoData("disk", [3, 2, 1, 0]));
    expect(infoOf(full, 1)?.toString()).toBe("disk");
    expect(infoOf(full, 2)?.toString()).toBe("the first disk");
    const sizes = infoOf(full, 3);
    expect([0, 4, 8].map((at) => sizes?.readUInt32BE(at))).toEqual([1, 65_536, 64 * MIB]);
    const undescribed = await client.option(OPT.INFO, infoData("disk/ro", [2]));
    expect(infoOf(undescribed, 2)).toBeUndefined();
  });

  test("answer the same one after the other, and only GO ends the handshake", async () => {
    const { client } = await greeted();
    const asked = await client.option(OPT.INFO, infoData("disk", [1, 2, 3]));
    const gone = await client.option(OPT.GO, infoData("disk", [1, 2, 3]));
    expect(gone.map(({ type, data }) => ({ type, data }))).toEqual(asked.map(({ type, data }) => ({ type, data })));
    expect((await client.call({ command: CMD.READ, length: 512 })).error).toBe(0);
  });

  const flagBits = { readOnly: 2, trim: 32, zeroes: 64, df: 128, fastZero: 2048 };
  test("claim DF with structured replies alone, and nothing that writes on a read-only export", async () => {
    const { client } = await greeted();
    const flagsOf = async (name: string) =>
      infoOf(await client.option(OPT.INFO, infoData(name)), 0)?.readUInt16BE(8) ?? 0;
    expect(await flagsOf("disk")).toBe(1 + 4 + 8 + flagBits.trim + flagBits.zeroes + 256 + 1024 + flagBits.fastZero);
    expect(await flagsOf("disk/ro")).toBe(1 + flagBits.readOnly + 4 + 8 + 256 + 1024);
    await client.option(OPT.STRUCTURED_REPLY);
    expect((await flagsOf("disk")) & flagBits.df).toBe(flagBits.df);
    expect((await flagsOf("disk/ro")) & flagBits.df).toBe(flagBits.df);
  });

  test("tell a rotational device", async () => {
    const device = new MemoryDevice({ sizeBytes: MIB, rotational: true });
    const { client } = new ServerRig({ device }).connect();
    await client.greet();
    const replies = await client.option(OPT.INFO, infoData(""));
    expect(infoOf(replies, 0)?.readUInt16BE(8)).toSatisfy((flags: number) => (flags & 16) !== 0);
  });
});

describe("EXPORT_NAME", () => {
  const reply = async (flags: number, name: string, first: number[] = []) => {
    const rig = new ServerRig({ exports: EXPORTS });
    const { client } = rig.connect();
    await client.greet(flags);
    for (const type of first) await client.option(type);
    client.send(option(OPT.EXPORT_NAME, name));
    return { rig, client };
  };

  test("is followed by 124 zeroes, unless the client agreed to leave them out", async () => {
    const { client } = await reply(1, "disk");
    const bytes = await client.take(134);
    expect(bytes.readBigUInt64BE(0)).toBe(BigInt(8 * MIB));
    expect(bytes.subarray(10)).toEqual(Buffer.alloc(124));
    expect((await client.call({ command: CMD.READ, length: 512 })).error).toBe(0);
    const { client: brief } = await reply(3, "disk");
    expect((await brief.take(10)).readUInt16BE(8) & 1).toBe(1);
    expect((await brief.call({ command: CMD.READ, length: 512 })).error).toBe(0);
    expect(brief.bufferedBytes).toBe(0);
  });

  test("is good enough for a client that does not know fixed newstyle", async () => {
    const { client } = await reply(0, "");
    expect((await client.take(134)).readBigUInt64BE(0)).toBe(BigInt(8 * MIB));
  });

  const refused: readonly [string, string, number[]][] = [
    ["a name that is not exported", "nope", []],
    ["a name of 4097 bytes", "a".repeat(4097), []],
    ["a name of 9000 bytes", "a".repeat(9000), []],
    ["a name with a NUL", "disk\0", []],
    ["extended headers agreed on before", "disk", [OPT.EXTENDED_HEADERS]],
  ];
  for (const [title, name, first] of refused) {
    test(`ends the connection without a word for ${title}`, async () => {
      const { rig, client } = await reply(3, name, first);
      expect(await client.takeAll()).toHaveLength(0);
      expect(rig.server.connections).toBe(0);
    });
  }

  test("takes over the contexts that were selected for its name", async () => {
    const { client } = await greeted();
    await client.option(OPT.STRUCTURED_REPLY);
    await client.setContexts("disk", [BASE]);
    client.send(option(OPT.EXPORT_NAME, "disk"));
    await client.take(10);
    client.dialect = "structured";
    expect((await client.call({ command: CMD.BLOCK_STATUS, length: 512 })).error).toBe(0);
  });
});

describe("ABORT", () => {
  for (const data of ["", "goodbye"]) {
    test(`is acknowledged, then the connection ends (${data.length} bytes of data)`, async () => {
      const { client } = await greeted();
      expect(await client.optionOutcome(OPT.ABORT, data)).toBe(REP.ACK);
      expect(await client.takeAll()).toHaveLength(0);
    });
  }
});

describe("the choice of dialect", () => {
  test("cannot be made twice, and extended headers win over structured replies", async () => {
    const { client } = await greeted();
    expect(await client.optionOutcome(OPT.STRUCTURED_REPLY)).toBe(REP.ACK);
    expect(await client.optionOutcome(OPT.STRUCTURED_REPLY)).toBe(REP.INVALID);
    expect(await client.optionOutcome(OPT.EXTENDED_HEADERS)).toBe(REP.ACK);
    expect(await client.optionOutcome(OPT.EXTENDED_HEADERS)).toBe(REP.INVALID);
    expect(await client.optionOutcome(OPT.STRUCTURED_REPLY)).toBe(REP.EXT_HEADER_REQD);
    expect(await client.optionOutcome(OPT.GO, infoData("disk"))).toBe(REP.ACK);
    client.dialect = "extended";
    expect((await client.call({ command: CMD.FLUSH })).chunks[0]?.form).toBe("extended");
  });

  test("a refused attempt changes nothing", async () => {
    const { client } = await greeted();
    await client.option(OPT.EXTENDED_HEADERS, "data");
    await client.option(OPT.STRUCTURED_REPLY, "data");
    await client.option(OPT.GO, infoData("disk"));
    expect((await client.call({ command: CMD.FLUSH })).chunks[0]?.form).toBe("simple");
  });
});
