import { describe, expect, test } from "vitest";
import type { NbdConnectCode } from "../../../../src/nbd/client/errors.ts";
import { NbdProtocolError } from "../../../../src/nbd/error.ts";
import { attempt, connected, EXPORT, haggle, refused } from "./attempt.ts";
import { outcomeOf, settled } from "./scripted-client.ts";
import { cat, ERR, OPT, optionReply, REP, type ScriptedServer, text, u16, u32, u64 } from "./scripted-server.ts";

describe("refusals", () => {
  test("each error of GO is told in its own words, with the server's own", async () => {
    const meanings: readonly (readonly [number, NbdConnectCode, RegExp])[] = [
      [ERR.policy, "policy", /policy/],
      [ERR.invalid, "refused", /invalid/],
      [ERR.platform, "unsupported", /built without/],
      [ERR.tlsReqd, "tls-required", /TLS/],
      [ERR.unknown, "unknown-export", /no export of that name/],
      [ERR.shutdown, "shutting-down", /shutting down/],
      [ERR.blockSizeReqd, "refused", /block sizes/],
      [ERR.tooBig, "refused", /too big/],
      [ERR.extHeaderReqd, "unsupported", /extended headers/],
      [0x8000_0099, "refused", /error 153/],
    ];
    for (const [error, code, why] of meanings) {
      const tried = attempt();
      await haggle(tried.server);
      await tried.server.answer(OPT.go, error, text("says\u001b[31m the server\n"));
      const told = await refused(tried, code);
      expect(told.why).toMatch(why);
      expect(told.why).toContain("says\\u{1b}[31m the server\\u{a}");
      // It is left politely.
      await tried.server.expect(OPT.abort);
    }
  });

  test("TLS_REQD and SHUTDOWN end the session whatever they answer to", async () => {
    for (const [error, code] of [
      [ERR.tlsReqd, "tls-required"],
      [ERR.shutdown, "shutting-down"],
    ] as const) {
      const tried = attempt();
      await tried.server.greet();
      await tried.server.answer(OPT.extended, error);
      await refused(tried, code);
      await tried.server.expect(OPT.abort);
      await settled();
      expect(tried.server.over).toBe(true);
    }
  });

  test("a server that does not close after ABORT is left after a second", async () => {
    const tried = attempt();
    await tried.server.greet();
    await tried.server.answer(OPT.extended, ERR.shutdown);
    await refused(tried, "shutting-down");
    await tried.server.expect(OPT.abort);
    expect(tried.server.stream.closed).toBe(false);
    tried.clock.advance(1000);
    await settled();
    expect(tried.server.stream.closed).toBe(true);
    expect(tried.clock.timers).toBe(0);
  });

  test("an export larger than 2^53−1 bytes is refused", async () => {
    for (const size of [2n ** 53n, 2n ** 63n, 2n ** 64n - 1n]) {
      const tried = attempt();
      await haggle(tried.server);
      await tried.server.expect(OPT.go);
      tried.server.send(optionReply(OPT.go, REP.info, EXPORT(size)), optionReply(OPT.go, REP.ack));
      await refused(tried, "bad-export");
    }
  });

  test("an export whose end its own block size cannot reach is refused", async () => {
    const tried = attempt();
    await tried.server.handshake({ sizeBytes: 1000, blockSizes: [512, 4096, 1 << 20] });
    await refused(tried, "bad-export");
  });

  test("a name that cannot be sent is refused before anything is asked", async () => {
    const tried = attempt({ exportName: "a\0b" });
    await refused(tried, "unknown-export");
  });
});

describe("violations in the handshake end it", () => {
  const go = (...replies: Buffer[]) => ({
    async run(server: ScriptedServer): Promise<void> {
      await haggle(server);
      await server.expect(OPT.go);
      server.send(...replies);
    },
  });
  const info = (...data: Uint8Array[]): Buffer => optionReply(OPT.go, REP.info, ...data);
  const ack = optionReply(OPT.go, REP.ack);
  const contexts = (...replies: Buffer[]) => ({
    async run(server: ScriptedServer): Promise<void> {
      await server.greet();
      await server.answer(OPT.extended, REP.ack);
      await server.expect(OPT.setMeta);
      server.send(...replies, optionReply(OPT.setMeta, REP.ack));
    },
  });
  const meta = (id: number, name: string): Buffer => optionReply(OPT.setMeta, REP.meta, u32(id), text(name));
  const header = (option: number, type: number, length: number): Buffer =>
    cat(Buffer.from("0003e889045565a9", "hex"), u32(option), u32(type), u32(length));

  const violations: Record<string, { run(server: ScriptedServer): Promise<void> }> = {
    "a greeting that is neither newstyle nor oldstyle": {
      run: async (server) => server.send(text("NBDMAGIC"), text("IHAVEOPS"), u16(3)),
    },
    "a reply with a wrong magic": go(cat(u64(1), info(EXPORT()).subarray(8))),
    "a reply to another option": go(optionReply(OPT.info, REP.info, EXPORT())),
    "a reply type that does not belong to the option": go(optionReply(OPT.go, REP.server, u32(0))),
    "information under another reply type": go(optionReply(OPT.go, REP.server, EXPORT()), ack),
    "an unknown reply type that is no error": go(optionReply(OPT.go, 99)),
    "an acknowledgement with data": go(info(EXPORT()), optionReply(OPT.go, REP.ack, text("x"))),
    "an acknowledgement without the export's size": go(ack),
    "a reply longer than 32 KiB": go(header(OPT.go, REP.info, 32_769)),
    "a reply of 4 GiB": go(header(OPT.go, REP.info, 0xffff_ffff)),
    "information without a type": go(info(Buffer.from([0])), ack),
    "an export's size of a wrong length": go(info(u16(0), u64(4096), u32(1)), ack),
    "block sizes of a wrong length": go(info(EXPORT()), info(u16(3), u32(1), u32(4096)), ack),
    "a minimum block size that is no power of two": go(
      info(EXPORT()),
      info(u16(3), u32(3), u32(4096), u32(1 << 20)),
      ack,
    ),
    "a minimum block size of zero": go(info(EXPORT()), info(u16(3), u32(0), u32(4096), u32(1 << 20)), ack),
    "a minimum block size above 64 KiB": go(
      info(EXPORT(1 << 20)),
      info(u16(3), u32(1 << 17), u32(1 << 17), u32(1 << 20)),
      ack,
    ),
    "a preferred block size under 512": go(info(EXPORT()), info(u16(3), u32(1), u32(256), u32(1 << 20)), ack),
    "a preferred block size that is no power of two": go(
      info(EXPORT()),
      info(u16(3), u32(1), u32(5000), u32(1 << 20)),
      ack,
    ),
    "a preferred block size under the minimum": go(
      info(EXPORT()),
      info(u16(3), u32(4096), u32(512), u32(1 << 20)),
      ack,
    ),
    "a maximum payload under the preferred block size": go(
      info(EXPORT()),
      info(u16(3), u32(1), u32(4096), u32(512)),
      ack,
    ),
    "a name of the export that is not UTF-8": go(info(EXPORT()), info(u16(1), Buffer.from([0xff])), ack),
    "a description of 4097 bytes": go(info(EXPORT()), info(u16(2), Buffer.alloc(4097, 0x61)), ack),
    "transmission flags without HAS_FLAGS": go(info(EXPORT(4096, 0x20)), ack),
    "endless information": go(...Array.from({ length: 65 }, () => info(u16(99)))),
    "a context that was not asked for": contexts(meta(1, "x-else:where")),
    "a context that comes twice": contexts(meta(1, "base:allocation"), meta(2, "base:allocation")),
    "two contexts of one number": contexts(meta(1, "base:allocation"), meta(1, "x-a:b")),
    "a context without a name": contexts(meta(1, "")),
    "more contexts than were asked for": contexts(meta(1, "base:allocation"), meta(2, "x-a:b"), meta(3, "x-a:c")),
  };

  for (const [name, script] of Object.entries(violations)) {
    test(name, async () => {
      const tried = attempt({ metaContexts: ["x-a:b"] });
      await script.run(tried.server);
      expect(await tried.outcome).toBeInstanceOf(NbdProtocolError);
      await settled();
      expect(tried.server.stream.closed).toBe(true);
      expect(tried.clock.timers).toBe(0);
    });
  }

  test("bytes behind the acknowledgement of GO, before any request, lose the connection", async () => {
    const tried = attempt();
    await haggle(tried.server);
    await tried.server.expect(OPT.go);
    tried.server.send(info(EXPORT()), ack, u32(0x67446698), u32(0), u64(0));
    const client = await connected(tried);
    await settled();
    expect(client.state).toBe("dead");
    expect(await outcomeOf(client.read(0, new Uint8Array(512)))).toMatchObject({ code: "io" });
  });

  test("a server that floods the client is dropped before it can fill memory", async () => {
    const tried = attempt();
    const flood = Buffer.alloc(64 * 1024, 0x41);
    await tried.server.greet();
    await tried.server.expect(OPT.extended);
    for (let sent = 0; sent < 32; sent++) tried.server.send(flood);
    expect(await tried.outcome).toBeInstanceOf(NbdProtocolError);
  });
});
