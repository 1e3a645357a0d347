import { describe, expect, test } from "vitest";
import type { TlsClient } from "../../../../src/env/tls.ts";
import { NbdProtocolError } from "../../../../src/nbd/error.ts";
import { cutAt, streamPair } from "../../../support/stream-pair.ts";
import { attempt, connected, EXPORT, refused } from "./attempt.ts";
import { settled } from "./scripted-client.ts";
import { cat, ERR, OPT, optionReply, REP, ScriptedServer, u16, u64 } from "./scripted-server.ts";

describe("TLS", () => {
  /** Stands in for TLS: the "protected" stream is a new pair, whose server end the script speaks on. */
  function fakeTls(): { client: TlsClient; secured: Promise<ScriptedServer>; fail(error: Error): void } {
    const inner = streamPair();
    const started = Promise.withResolvers<ScriptedServer>();
    let failure: Error | undefined;
    return {
      secured: started.promise,
      fail: (error) => {
        failure = error;
      },
      client: {
        async connect(stream) {
          stream.attach({
            onBytes: () => {},
            onEnd: () => {},
            onClose: () => inner.client.destroy(),
            onDrain: () => {},
          });
          if (failure !== undefined) {
            stream.destroy();
            throw failure;
          }
          started.resolve(new ScriptedServer(inner.server));
          return inner.client;
        },
      },
    };
  }

  test("comes first, and everything else is agreed on within it", async () => {
    const tls = fakeTls();
    const tried = attempt({ tls: { mode: "require", client: tls.client } });
    await tried.server.greet();
    await tried.server.answer(OPT.startTls, REP.ack);
    const secured = await tls.secured;
    await secured.answer(OPT.extended, REP.ack);
    await secured.answer(OPT.setMeta, REP.ack);
    await secured.expect(OPT.go);
    secured.send(optionReply(OPT.go, REP.info, EXPORT()), optionReply(OPT.go, REP.ack));
    const client = await connected(tried);
    expect(client.secure).toBe(true);
    expect(tried.server.unread).toHaveLength(0);
  });

  test("plaintext that comes with the server's consent ends the session", async () => {
    const tls = fakeTls();
    const tried = attempt({ tls: { mode: "require", client: tls.client } });
    await tried.server.greet();
    await tried.server.expect(OPT.startTls);
    tried.server.send(optionReply(OPT.startTls, REP.ack), optionReply(OPT.extended, REP.ack));
    expect(await tried.outcome).toBeInstanceOf(NbdProtocolError);
    expect(((await tried.outcome) as Error).message).toMatch(/plaintext/);
  });

  test("one byte of it is enough, wherever the pieces are cut", async () => {
    const bytes = cat(optionReply(OPT.startTls, REP.ack), Buffer.from([0]));
    const greeting = 18;
    // Cut behind the consent, the last byte arrives when TLS has taken over, and is TLS's to refuse.
    for (let at = 1; at < bytes.length - 1; at++) {
      const tls = fakeTls();
      const tried = attempt({ tls: { mode: "on", client: tls.client } }, { clientCut: cutAt(greeting + at) });
      await tried.server.greet();
      await tried.server.expect(OPT.startTls);
      tried.server.send(bytes);
      expect(await tried.outcome).toBeInstanceOf(NbdProtocolError);
    }
  });

  test("required and not to be had, nothing is asked in plaintext", async () => {
    for (const error of [ERR.unsup, ERR.policy, ERR.platform]) {
      const tried = attempt({ tls: { mode: "require", client: fakeTls().client } });
      await tried.server.greet();
      await tried.server.answer(OPT.startTls, error);
      await refused(tried, "tls-unavailable");
      expect((await tried.server.option()).option).toBe(OPT.abort);
      await settled();
      expect(tried.server.unread).toHaveLength(0);
    }
  });

  test("required, a server that pretends to be too old is refused", async () => {
    const tried = attempt({ tls: { mode: "require", client: fakeTls().client } });
    await tried.server.greet(0);
    await refused(tried, "tls-unavailable");
    await settled();
    expect(tried.server.unread).toHaveLength(0);
  });

  test("merely preferred, a server without it is used in plaintext", async () => {
    for (const flags of [3, 0]) {
      const tried = attempt({ tls: { mode: "on", client: fakeTls().client } });
      await tried.server.greet(flags);
      if (flags === 3) {
        await tried.server.answer(OPT.startTls, ERR.unsup);
        await tried.server.answer(OPT.extended, ERR.unsup);
        await tried.server.answer(OPT.structured, ERR.unsup);
        await tried.server.expect(OPT.go);
        tried.server.send(optionReply(OPT.go, REP.info, EXPORT()), optionReply(OPT.go, REP.ack));
      } else {
        await tried.server.expect(OPT.exportName);
        tried.server.send(u64(4096), u16(1), Buffer.alloc(124));
      }
      expect((await connected(tried)).secure).toBe(false);
    }
  });

  test("that fails is never followed by plaintext", async () => {
    const tls = fakeTls();
    tls.fail(new Error("self-signed certificate"));
    const tried = attempt({ tls: { mode: "on", client: tls.client } });
    await tried.server.greet();
    await tried.server.answer(OPT.startTls, REP.ack);
    expect((await refused(tried, "tls-failed")).why).toMatch(/self-signed/);
    await settled();
    expect(tried.server.unread).toHaveLength(0);
    expect(tried.server.stream.closed).toBe(true);
  });

  test("that never comes about ends with the deadline, and a stream that comes late is dropped", async () => {
    const inner = streamPair();
    const securing = Promise.withResolvers<typeof inner.client>();
    const tried = attempt({ tls: { mode: "require", client: { connect: () => securing.promise } } });
    await tried.server.greet();
    await tried.server.answer(OPT.startTls, REP.ack);
    await settled();
    tried.clock.advance(10_000);
    await refused(tried, "timeout");
    securing.resolve(inner.client);
    await settled();
    expect(inner.server.closed).toBe(true);
  });
});
