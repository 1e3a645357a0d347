import { describe, expect, test } from "vitest";
import type { ByteStream } from "../../../../src/env/links.ts";
import type { TlsServer } from "../../../../src/env/tls.ts";
import { CMD, contextData, ERR, infoData, OPT, option, REP } from "../../../support/nbd-wire.ts";
import { rawClientOver } from "../../../support/raw-client.ts";
import { ScriptedDevice } from "../../../support/scripted-device.ts";
import { ServerRig, settle } from "../../../support/server-rig.ts";
import { TurnedStream } from "./turned-stream.ts";

const BASE = "base:allocation";
const ALL_OPTIONS = [
  OPT.LIST,
  OPT.INFO,
  OPT.GO,
  OPT.STRUCTURED_REPLY,
  OPT.LIST_META_CONTEXT,
  OPT.SET_META_CONTEXT,
  OPT.EXTENDED_HEADERS,
];

/** Stands in for TLS: from the handshake on every byte is turned round. Nothing else is said. */
class TurningTls implements TlsServer {
  accepted = 0;
  /** When set, `accept` waits for it; rejecting it refuses the client. */
  gate: Promise<void> | undefined;

  async accept(stream: ByteStream): Promise<ByteStream> {
    this.accepted++;
    stream.attach({ onBytes: () => {}, onEnd: () => {}, onClose: () => {}, onDrain: () => {} });
    try {
      await this.gate;
    } catch (error) {
      stream.destroy();
      throw error;
    }
    return new TurnedStream(stream);
  }
}

function serve(mode: "on" | "require") {
  const device = new ScriptedDevice({ sizeBytes: 1024 * 1024 });
  const tls = new TurningTls();
  const rig = new ServerRig({ device, tls: { mode, server: tls } });
  return { device, tls, rig };
}

/** A client that has done STARTTLS: in the clear, and beneath it. */
async function secured(mode: "on" | "require") {
  const { rig, tls, device } = serve(mode);
  const { client: clear, near } = rig.connect();
  await clear.greet();
  expect(await clear.optionOutcome(OPT.STARTTLS)).toBe(REP.ACK);
  return { rig, tls, device, client: rawClientOver(new TurnedStream(near)) };
}

describe("a server that requires TLS", () => {
  for (const type of [...ALL_OPTIONS, 4, 99, 0xffff_ffff]) {
    test(`says nothing but that to option ${type}, well formed, malformed or too long`, async () => {
      const { rig } = serve("require");
      const { client } = rig.connect();
      await client.greet();
      for (const data of ["", infoData(""), contextData("", [BASE]), "junk", Buffer.alloc(9000)]) {
        const replies = await client.option(type, data);
        expect(replies.map((reply) => reply.type)).toEqual([REP.TLS_REQD]);
        expect(replies[0]?.data.toString()).toBe("this server requires TLS");
      }
      expect(await client.optionOutcome(OPT.ABORT)).toBe(REP.ACK);
    });
  }

  test("ends the connection at EXPORT_NAME", async () => {
    for (const name of ["", "a".repeat(9000)]) {
      const { rig } = serve("require");
      const { client } = rig.connect();
      await client.greet();
      client.send(option(OPT.EXPORT_NAME, name));
      expect(await client.takeAll()).toHaveLength(0);
    }
  });

  test("serves a client that has it, and never asks for it again", async () => {
    const { client } = await secured("require");
    expect(await client.optionOutcome(OPT.LIST)).toBe(REP.ACK);
    expect(await client.optionOutcome(OPT.GO, infoData("nope"))).toBe(REP.UNKNOWN);
    expect(await client.optionOutcome(OPT.GO, infoData(""))).toBe(REP.ACK);
    expect((await client.call({ command: CMD.READ, length: 512 })).error).toBe(0);
  });
});

describe("STARTTLS", () => {
  test("is not needed where it is only offered", async () => {
    const { rig } = serve("on");
    const { client } = await rig.open();
    expect((await client.call({ command: CMD.READ, length: 512 })).error).toBe(0);
  });

  for (const mode of ["on", "require"] as const) {
    test(`cannot be done twice (${mode})`, async () => {
      const { client, tls } = await secured(mode);
      expect(await client.optionOutcome(OPT.STARTTLS)).toBe(REP.INVALID);
      expect(await client.optionOutcome(OPT.LIST)).toBe(REP.ACK);
      expect(tls.accepted).toBe(1);
    });

    test(`with data is refused and changes nothing (${mode})`, async () => {
      const { rig, tls } = serve(mode);
      const { client } = rig.connect();
      await client.greet();
      expect(await client.optionOutcome(OPT.STARTTLS, "x")).toBe(REP.INVALID);
      expect(await client.optionOutcome(OPT.LIST)).toBe(mode === "on" ? REP.ACK : REP.TLS_REQD);
      expect(tls.accepted).toBe(0);
    });
  }

  test("does not send the greeting again, and keeps what the client's flags said", async () => {
    const { client } = await secured("on");
    client.send(option(OPT.EXPORT_NAME, ""));
    // Ten bytes and no zeroes: NO_ZEROES was agreed on before.
    expect((await client.take(10)).readBigUInt64BE(0)).toBe(1024n * 1024n);
    expect((await client.call({ command: CMD.READ, length: 512 })).error).toBe(0);
    expect(client.bufferedBytes).toBe(0);
  });

  test("does not start the count of options again", async () => {
    const { rig } = serve("on");
    const { client: clear, near } = rig.connect();
    await clear.greet();
    for (let count = 0; count < 32 + 8 - 1; count++) await clear.option(99);
    expect(await clear.optionOutcome(OPT.STARTTLS)).toBe(REP.ACK);
    const client = rawClientOver(new TurnedStream(near));
    client.send(option(OPT.LIST));
    expect(await client.takeAll()).toHaveLength(0);
  });

  test("forgets the dialect and the contexts agreed on before", async () => {
    for (const dialect of [OPT.STRUCTURED_REPLY, OPT.EXTENDED_HEADERS]) {
      const { rig } = serve("on");
      const { client: clear, near } = rig.connect();
      await clear.greet();
      await clear.option(dialect);
      await clear.setContexts("", [BASE]);
      expect(await clear.optionOutcome(OPT.STARTTLS)).toBe(REP.ACK);
      const client = rawClientOver(new TurnedStream(near));
      expect(await client.optionOutcome(OPT.GO, infoData(""))).toBe(REP.ACK);
      const { error, chunks } = await client.call({ command: CMD.BLOCK_STATUS, length: 512 });
      expect([error, chunks[0]?.form]).toEqual([ERR.EINVAL, "simple"]);
    }
  });

  test("with bytes behind it ends the connection before any of them is read", async () => {
    const { rig, tls, device } = serve("on");
    const { client } = rig.connect();
    await client.greet();
    client.send(option(OPT.STARTTLS), option(OPT.GO, infoData("")));
    const answer = await client.takeAll();
    // The acknowledgement at most; nothing of an export.
    expect(answer.length === 0 || answer.readUInt32BE(12) === REP.ACK).toBe(true);
    expect(answer.length).toBeLessThanOrEqual(20);
    expect([tls.accepted, device.calls, rig.server.connections]).toEqual([0, [], 0]);
  });

  test("that fails closes the connection, and is logged", async () => {
    const { rig, tls } = serve("require");
    tls.gate = Promise.reject(new Error("no certificate"));
    tls.gate.catch(() => {});
    const { client } = rig.connect();
    await client.greet();
    await client.option(OPT.STARTTLS);
    expect(await client.takeAll()).toHaveLength(0);
    expect([rig.logged("warn"), rig.server.connections]).toEqual([["a TLS handshake failed"], 0]);
  });

  test("does not prolong the ten seconds of the handshake", async () => {
    const { rig, tls } = serve("require");
    const gate = Promise.withResolvers<void>();
    tls.gate = gate.promise;
    const { client, near } = rig.connect();
    await client.greet();
    await client.option(OPT.STARTTLS);
    rig.clock.advance(10_000);
    expect(rig.server.connections).toBe(0);
    gate.resolve();
    await settle();
    expect([near.closed, rig.server.connections]).toEqual([true, 0]);
    const { rig: second } = await secured("require");
    second.clock.advance(10_000);
    expect(second.server.connections).toBe(0);
  });

  test("under way when the server closes is not waited for, and leads nowhere", async () => {
    const { rig, tls, device } = serve("require");
    const gate = Promise.withResolvers<void>();
    tls.gate = gate.promise;
    const { client, near } = rig.connect();
    await client.greet();
    await client.option(OPT.STARTTLS);
    await rig.server.close();
    gate.resolve();
    await settle();
    expect([near.closed, rig.server.connections, rig.clock.timers]).toEqual([true, 0, 0]);
    expect(device.calls).toEqual(["flush"]);
  });
});
