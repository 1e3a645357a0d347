import { describe, expect, test } from "vitest";
import {
  CMD,
  contextData,
  ERR,
  infoData,
  OPT,
  type OptionReply,
  REP,
  u32,
  type WireDialect,
} from "../../../support/nbd-wire.ts";
import type { RawClient } from "../../../support/raw-client.ts";
import { BASE, expectAlive, greeted, presence } from "./handshake-fixture.ts";

const contexts = (replies: readonly OptionReply[]) =>
  replies.filter(({ type }) => type === REP.META_CONTEXT).map(({ data }) => data.toString("utf8", 4));

describe("metadata contexts", () => {
  const metaCases: readonly [string, Buffer | string, number][] = [
    ["no queries", contextData("disk"), REP.ACK],
    ["a good query", contextData("disk", [BASE]), REP.ACK],
    ["a query of an unknown namespace", contextData("disk", ["who:knows"]), REP.ACK],
    ["an unknown leaf", contextData("disk", ["base:what"]), REP.ACK],
    ["an empty query", contextData("disk", [""]), REP.ACK],
    ["an export that does not exist", contextData("disk2", [BASE]), REP.UNKNOWN],
    ["no data", "", REP.INVALID],
    ["no count", Buffer.concat([u32(4), Buffer.from("disk")]), REP.INVALID],
    ["2^32−1 queries announced, none there", Buffer.concat([u32(0), u32(0xffff_ffff)]), REP.INVALID],
    [
      "a query longer than the option",
      Buffer.concat([u32(0), u32(1), u32(2 ** 31), Buffer.from("base:")]),
      REP.INVALID,
    ],
    ["bytes after the last query", Buffer.concat([contextData("disk", [BASE]), Buffer.from("!")]), REP.INVALID],
    ["a query of 4097 bytes", contextData("disk", [`base:${"a".repeat(4092)}`]), REP.INVALID],
    ["a query with a NUL", contextData("disk", ["base:\0"]), REP.INVALID],
  ];
  for (const type of [OPT.LIST_META_CONTEXT, OPT.SET_META_CONTEXT]) {
    for (const [title, data, outcome] of metaCases) {
      test(`${type === OPT.SET_META_CONTEXT ? "SET" : "LIST"}_META_CONTEXT with ${title}`, async () => {
        const { client } = await greeted();
        expect(await client.optionOutcome(OPT.STRUCTURED_REPLY)).toBe(REP.ACK);
        expect(await client.optionOutcome(type, data)).toBe(outcome);
        await expectAlive(client);
      });
    }
  }
  const choose = async (client: RawClient, dialect: WireDialect = "structured") => {
    await client.option(dialect === "extended" ? OPT.EXTENDED_HEADERS : OPT.STRUCTURED_REPLY);
    client.dialect = dialect;
  };
  const go = async (client: RawClient, name: string) =>
    expect(await client.optionOutcome(OPT.GO, infoData(name))).toBe(REP.ACK);
  const statusError = async (client: RawClient) =>
    (await client.call({ command: CMD.BLOCK_STATUS, length: 4096 })).error;

  test("are listed by exact name, by namespace, or all", async () => {
    const { client } = await greeted();
    await choose(client);
    const list = async (name: string, queries: string[]) =>
      contexts(await client.option(OPT.LIST_META_CONTEXT, contextData(name, queries)));
    expect(await list("disk", [])).toEqual([BASE, presence.name]);
    expect(await list("", [])).toEqual([BASE]);
    expect(await list("disk", ["base:"])).toEqual([BASE]);
    expect(await list("disk", ["x-blockferry:"])).toEqual([presence.name]);
    expect(await list("disk", ["base:", "x-blockferry:", BASE])).toEqual([BASE, presence.name]);
    expect(await list("disk", ["base", "bas:", ":", "", "x-blockferry"])).toEqual([]);
  });

  test("are selected by exact name alone, each with an id of its own", async () => {
    const { client } = await greeted();
    await choose(client);
    const set = async (queries: string[]) =>
      contexts(await client.option(OPT.SET_META_CONTEXT, contextData("disk", queries)));
    expect(await set([])).toEqual([]);
    expect(await set(["base:", "x-blockferry:", "BASE:ALLOCATION"])).toEqual([]);
    expect(await set([BASE, BASE, presence.name])).toEqual([BASE, presence.name]);
    await client.setContexts("disk", [presence.name, BASE]);
    expect(new Set(client.contextIds.values()).size).toBe(2);
  });

  test("a later selection replaces an earlier one", async () => {
    const { client } = await greeted();
    await choose(client);
    await client.setContexts("disk", [BASE]);
    await client.setContexts("disk", [presence.name]);
    await go(client, "disk");
    const { chunks } = await client.call({ command: CMD.BLOCK_STATUS, length: 4096 });
    expect(chunks.map(({ payload }) => payload.readUInt32BE(0))).toEqual([client.contextIds.get(presence.name)]);
  });

  const failing: readonly [string, Buffer | string, number][] = [
    ["names an unknown export", contextData("nope", [BASE]), REP.UNKNOWN],
    ["is malformed", "x", REP.INVALID],
    ["is too long", Buffer.alloc(9000), REP.TOO_BIG],
    ["selects nothing", contextData("disk", []), REP.ACK],
  ];
  for (const [why, data, outcome] of failing) {
    test(`a later SET_META_CONTEXT that ${why} still ends the earlier selection`, async () => {
      const { client } = await greeted();
      await choose(client);
      await client.setContexts("disk", [BASE]);
      expect(await client.optionOutcome(OPT.SET_META_CONTEXT, data)).toBe(outcome);
      await go(client, "disk");
      expect(await statusError(client)).toBe(ERR.EINVAL);
    });
  }

  test("LIST_META_CONTEXT leaves the selection alone", async () => {
    const { client } = await greeted();
    await choose(client);
    await client.setContexts("disk", [BASE]);
    await client.option(OPT.LIST_META_CONTEXT, contextData("disk2", ["base:"]));
    await go(client, "disk");
    expect(await statusError(client)).toBe(0);
  });

  test("selected for one export, they are not valid for another", async () => {
    const { client } = await greeted();
    await choose(client);
    await client.setContexts("disk", [BASE]);
    await go(client, "ünïcode");
    expect(await statusError(client)).toBe(ERR.EINVAL);
  });

  test("survive the change from structured replies to extended headers", async () => {
    const { client } = await greeted();
    await choose(client);
    await client.setContexts("disk", [BASE]);
    await choose(client, "extended");
    await go(client, "disk");
    expect(await statusError(client)).toBe(0);
  });
});
