import { describe, expect, test } from "vitest";
import { NbdConnectError } from "../../../../src/nbd/client/errors.ts";
import { type ListOptions, listExports } from "../../../../src/nbd/client/list-exports.ts";
import { NbdProtocolError } from "../../../../src/nbd/error.ts";
import { streamPair } from "../../../support/stream-pair.ts";
import { ManualClock } from "./manual-clock.ts";
import { settled } from "./scripted-client.ts";
import { ALL_FLAGS, cat, ERR, OPT, optionReply, REP, ScriptedServer, text, u16, u32, u64 } from "./scripted-server.ts";

type Listed = Awaited<ReturnType<typeof listExports>>;

function ask(options: Partial<ListOptions> = {}): { server: ScriptedServer; outcome: Promise<Listed | Error> } {
  const pair = streamPair();
  const env = { clock: new ManualClock(), links: { dial: async () => pair.client } };
  const asking = listExports(env, { address: { kind: "unix", path: "/s" }, ...options });
  return { server: new ScriptedServer(pair.server), outcome: asking.catch((error: Error) => error) };
}

const named = (name: string, description = ""): Buffer =>
  optionReply(OPT.list, REP.server, u32(Buffer.byteLength(name)), text(name), text(description));
const done = optionReply(OPT.list, REP.ack);

describe("listing exports", () => {
  test("tells names and descriptions in the server's order, and leaves politely", async () => {
    const { server, outcome } = ask();
    await server.greet();
    await server.expect(OPT.list);
    server.send(named("vdb"), named(""), named("vdä", "Anna's"), done);
    expect(await outcome).toEqual([{ name: "vdb" }, { name: "" }, { name: "vdä", description: "Anna's" }]);
    await server.expect(OPT.abort);
    await settled();
    expect(server.over).toBe(true);
  });

  test("may have nothing to tell", async () => {
    const { server, outcome } = ask();
    await server.greet();
    await server.expect(OPT.list);
    server.send(done);
    expect(await outcome).toEqual([]);
  });

  test("with details asks about each export, and goes on where it is refused", async () => {
    const { server, outcome } = ask({ details: true });
    await server.greet();
    await server.expect(OPT.list);
    server.send(named("a"), named("b"), done);
    await server.answer(OPT.extended, ERR.unsup);
    await server.answer(OPT.structured, REP.ack);
    expect(await server.expect(OPT.info)).toEqual(cat(u32(1), text("a"), u16(3), u16(3), u16(1), u16(2)));
    server.reply(OPT.info, REP.info, u16(0), u64(4096), u16(ALL_FLAGS));
    server.reply(OPT.info, REP.info, u16(2), text("first"));
    server.reply(OPT.info, REP.ack);
    expect(await server.expect(OPT.listMeta)).toEqual(cat(u32(1), text("a"), u32(0)));
    server.reply(OPT.listMeta, REP.meta, u32(0), text("base:allocation"));
    server.reply(OPT.listMeta, REP.ack);
    await server.answer(OPT.info, ERR.policy, text("not you"));
    expect(await outcome).toMatchObject([
      { name: "a", description: "first", info: { sizeBytes: 4096, flags: ALL_FLAGS }, contexts: ["base:allocation"] },
      { name: "b", refused: { code: "policy", why: expect.stringContaining("not you") } },
    ]);
  });

  test("with details makes do with names where the server has no INFO", async () => {
    const { server, outcome } = ask({ details: true });
    await server.greet();
    await server.expect(OPT.list);
    server.send(named("a"), named("b"), done);
    await server.answer(OPT.extended, ERR.unsup);
    await server.answer(OPT.structured, ERR.unsup);
    await server.answer(OPT.info, ERR.unsup);
    expect(await outcome).toEqual([{ name: "a" }, { name: "b" }]);
  });

  test("that is forbidden, or that the server is too old for, is told so", async () => {
    const forbidden = ask();
    await forbidden.server.greet();
    await forbidden.server.answer(OPT.list, ERR.policy);
    expect(await forbidden.outcome).toMatchObject({ code: "policy", what: expect.stringContaining("list") });
    const old = ask();
    await old.server.greet(0);
    expect(await old.outcome).toMatchObject({ code: "unsupported" });
    expect(await old.outcome).toBeInstanceOf(NbdConnectError);
  });

  test("is ended by replies that lie about their lengths, hold no names, or never end", async () => {
    const lies = [
      optionReply(OPT.list, REP.server, u32(5), text("four")),
      optionReply(OPT.list, REP.server, u32(0xffff_ffff), text("four")),
      optionReply(OPT.list, REP.server, u16(1)),
      optionReply(OPT.list, REP.server, u32(1), Buffer.of(0xff)),
      optionReply(OPT.list, REP.server, u32(1), Buffer.of(0)),
      optionReply(OPT.list, REP.server, u32(4097), Buffer.alloc(4097, 0x61)),
      Buffer.concat(Array.from({ length: 10_001 }, () => named("a"))),
    ];
    for (const lie of lies) {
      const { server, outcome } = ask();
      await server.greet();
      await server.expect(OPT.list);
      server.send(lie, done);
      expect(await outcome).toBeInstanceOf(NbdProtocolError);
    }
  });
});

describe("dialling", () => {
  test("that fails is told with the address, the reason and what to do", async () => {
    const env = {
      clock: new ManualClock(),
      links: { dial: () => Promise.reject(new Error("connect ECONNREFUSED")) },
    };
    const asking = listExports(env, { address: { kind: "tcp", host: "::1", port: 10_809 } });
    const error = (await asking.catch((reason: unknown) => reason)) as NbdConnectError;
    expect(error).toBeInstanceOf(NbdConnectError);
    expect(error.code).toBe("unreachable");
    expect(error.message).toContain("[::1]:10809");
    expect(error.why).toContain("ECONNREFUSED");
    expect(env.clock.timers).toBe(0);
  });

  test("counts towards the deadline, and a stream that comes late is dropped", async () => {
    const pair = streamPair();
    const dialling = Promise.withResolvers<typeof pair.client>();
    const clock = new ManualClock();
    let signal: AbortSignal | undefined;
    const links = {
      dial: (_address: unknown, given?: AbortSignal) => {
        signal = given;
        return dialling.promise;
      },
    };
    const asking = listExports({ clock, links }, { address: { kind: "unix", path: "/s" } });
    const outcome = asking.catch((reason: unknown) => reason);
    clock.advance(10_000);
    expect(signal?.aborted).toBe(true);
    dialling.resolve(pair.client);
    expect(await outcome).toMatchObject({ code: "timeout" });
    await settled();
    expect(pair.server.closed).toBe(true);
  });
});
