import { describe, expect, test } from "vitest";
import { attempt, connected, haggle, refused } from "./attempt.ts";
import { outcomeOf, settled } from "./scripted-client.ts";
import { OPT, optionReply, REP, type ScriptedServer, text } from "./scripted-server.ts";

describe("a connection that ends in the handshake", () => {
  test("fails it, wherever it ends", async () => {
    const plain = attempt();
    await plain.server.handshake();
    await connected(plain);
    const total = plain.server.stream.deliveredBytes;
    for (let at = 0; at < total; at++) {
      const tried = attempt();
      const script = outcomeOf(tried.server.handshake());
      tried.server.stream.breakAfter(at);
      expect(await tried.outcome).toBeInstanceOf(Error);
      await script;
      expect(tried.clock.timers).toBe(0);
    }
  });

  test("in an orderly way is told as such", async () => {
    const tried = attempt();
    await tried.server.greet();
    await tried.server.expect(OPT.extended);
    tried.server.stream.end();
    await refused(tried, "closed");
  });

  test("without NBD ever having been spoken is told as such", async () => {
    const tried = attempt();
    tried.server.send(text("HTTP/1.1 400 Bad Request"));
    await refused(tried, "not-nbd");
  });
});

describe("the handshake's deadline", () => {
  const silences: Record<string, (server: ScriptedServer) => Promise<unknown>> = {
    "before the greeting": async () => undefined,
    "after the greeting": (server) => server.greet(),
    "within a reply": async (server) => {
      await server.greet();
      server.send(optionReply(OPT.extended, REP.ack).subarray(0, 11));
    },
    "after options": haggle,
  };
  for (const [when, run] of Object.entries(silences)) {
    test(`ends a silence ${when}`, async () => {
      const tried = attempt();
      await run(tried.server);
      await settled();
      tried.clock.advance(9999);
      await settled();
      expect(tried.server.stream.closed).toBe(false);
      tried.clock.advance(1);
      await refused(tried, "timeout");
      await settled();
      expect(tried.server.stream.closed).toBe(true);
      expect(tried.clock.timers).toBe(0);
    });
  }

  test("means nothing once the client is connected", async () => {
    const tried = attempt({ handshakeTimeoutMs: 50 });
    await tried.server.handshake();
    const client = await connected(tried);
    tried.clock.advance(100_000);
    await settled();
    expect(client.state).toBe("open");
  });

  test("is not waited for when the caller gives up", async () => {
    const controller = new AbortController();
    const tried = attempt({ signal: controller.signal });
    await tried.server.greet();
    controller.abort();
    await refused(tried, "cancelled");
    const late = attempt({ signal: controller.signal });
    await refused(late, "cancelled");
    await settled();
    expect(late.server.stream.closed).toBe(true);
  });
});
