import { expect, test } from "vitest";
import { FileError } from "../../../src/env/files.ts";
import { QmpClient } from "../../../src/qmp/client.ts";
import { QmpCommandError, QmpError, QmpProtocolError } from "../../../src/qmp/errors.ts";
import { COMMAND_TIMEOUT_MS, COMMANDS_MAX, GREETING_TIMEOUT_MS, MESSAGE_BYTES_MAX } from "../../../src/qmp/limits.ts";
import type { QmpEvent } from "../../../src/qmp/messages.ts";
import { MessageSplitter } from "../../../src/qmp/splitter.ts";
import { itSeeded } from "../../support/seed.ts";
import { cutAt, seeded } from "../../support/stream-pair.ts";
import { FakeQemu, OK, refused, settle } from "./fake-qemu.ts";

test("a client waits for the greeting, leaves negotiation mode, and knows the version", async () => {
  const qemu = new FakeQemu();
  using client = await qemu.connect();
  expect(client.version).toBe("7.2.19");
  expect(qemu.commands.map(({ execute }) => execute)).toEqual(["qmp_capabilities"]);
  expect(qemu.clock.timers).toBe(0);
});

test("replies find their commands by id, in whatever order they come", async () => {
  const qemu = new FakeQemu();
  using client = await qemu.connect();
  qemu.on("first", () => undefined);
  qemu.on("second", () => ({ return: "two" }));
  const first = client.execute("first", { a: 1 });
  expect(await client.execute("second")).toBe("two");
  const asked = qemu.commands.find(({ execute }) => execute === "first");
  expect(asked?.arguments).toEqual({ a: 1 });
  qemu.say({ return: "one", id: asked?.id });
  expect(await first).toBe("one");
});

test("a refusal has QEMU's class and description", async () => {
  const qemu = new FakeQemu();
  using client = await qemu.connect();
  qemu.on("device_del", () => refused("Device 'x' not found", "DeviceNotFound"));
  const error = await client.execute("device_del", { id: "x" }).catch((caught: unknown) => caught);
  expect(error).toBeInstanceOf(QmpCommandError);
  expect(error).toMatchObject({ class: "DeviceNotFound", desc: "Device 'x' not found", command: "device_del" });
  // It is the command that failed, not the connection.
  qemu.on("stop", () => OK);
  expect(await client.execute("stop")).toEqual({});
});

test("events reach every listener, until it is disposed of", async () => {
  const qemu = new FakeQemu();
  using client = await qemu.connect();
  const seen: QmpEvent[] = [];
  const listening = client.listen((event) => seen.push(event));
  qemu.event("STOP");
  qemu.event("MIGRATION", { status: "active" });
  await settle();
  expect(seen).toEqual([
    { event: "STOP", data: {} },
    { event: "MIGRATION", data: { status: "active" } },
  ]);
  listening[Symbol.dispose]();
  qemu.event("RESUME");
  await settle();
  expect(seen).toHaveLength(2);
});

test("a monitor that does not greet is somebody else's, and the error says so", async () => {
  const qemu = new FakeQemu();
  const connecting = QmpClient.over(qemu.stream, qemu.clock, "unix:/run/qmp").catch((caught: unknown) => caught);
  await settle();
  qemu.clock.advance(GREETING_TIMEOUT_MS);
  const error = await connecting;
  expect(error).toBeInstanceOf(QmpError);
  expect(error).toMatchObject({ code: "taken" });
  expect((error as QmpError).message).toContain("unix:/run/qmp");
  expect((error as QmpError).hint).toContain("second -qmp");
  expect(qemu.stream.closed).toBe(true);
});

function refusing(...codes: string[]) {
  const dials: string[] = [];
  const dial = () => {
    const code = codes[Math.min(dials.length, codes.length - 1)] as string;
    dials.push(code);
    return Promise.reject(new FileError(code, `connect ${code}`));
  };
  return { dials, links: { dial } };
}

const ADDRESS = { kind: "unix", path: "/run/qmp" } as const;

test("a monitor that is not there is closed, with what to do", async () => {
  const { clock } = new FakeQemu();
  const error = await QmpClient.dial({ clock, links: refusing("ENOENT").links }, ADDRESS).catch((caught) => caught);
  expect(error).toMatchObject({ code: "closed" });
  expect((error as QmpError).hint).toContain("-qmp unix:");
});

test("a monitor before which others wait is dialled again for a while, and is taken then", async () => {
  const { clock } = new FakeQemu();
  const { links, dials } = refusing("EAGAIN");
  const dialling = QmpClient.dial({ clock, links }, ADDRESS).catch((caught: unknown) => caught);
  for (let passedMs = 0; passedMs <= GREETING_TIMEOUT_MS; passedMs += 100) {
    await settle();
    clock.advance(100);
  }
  expect(await dialling).toMatchObject({ code: "taken" });
  expect(dials.length).toBeGreaterThan(10);
  // When there is room, it is found out what there is.
  const soon = QmpClient.dial({ clock, links: refusing("EAGAIN", "ECONNREFUSED").links }, ADDRESS);
  const outcome = soon.catch((caught: unknown) => caught);
  await settle();
  clock.advance(100);
  expect(await outcome).toMatchObject({ code: "closed" });
});

test("a command that is not answered in time fails, and its late reply is dropped", async () => {
  const qemu = new FakeQemu();
  using client = await qemu.connect();
  qemu.on("stop", () => undefined);
  const stopping = client.execute("stop").catch((caught: unknown) => caught);
  await settle();
  qemu.clock.advance(COMMAND_TIMEOUT_MS);
  expect(await stopping).toMatchObject({ code: "timeout" });
  qemu.say({ return: {}, id: qemu.commands.at(-1)?.id });
  expect((await client.execute("query-status")).status).toBe("running");
});

test("without a limit a command waits as long as QEMU takes", async () => {
  const qemu = new FakeQemu();
  using client = await qemu.connect();
  qemu.on("cont", () => undefined);
  const continuing = client.execute("cont", undefined, { timeoutMs: null });
  await settle();
  qemu.clock.advance(100 * COMMAND_TIMEOUT_MS);
  qemu.say({ return: {}, id: qemu.commands.at(-1)?.id });
  expect(await continuing).toEqual({});
});

test("when QEMU goes away, commands under way and later ones fail with closed", async () => {
  const qemu = new FakeQemu();
  const client = await qemu.connect();
  qemu.on("stop", () => undefined);
  const stopping = client.execute("stop").catch((caught: unknown) => caught);
  await settle();
  qemu.die();
  expect(await stopping).toMatchObject({ code: "closed" });
  expect(await client.closed).toMatchObject({ code: "closed" });
  await expect(client.execute("cont")).rejects.toMatchObject({ code: "closed" });
  expect(qemu.clock.timers).toBe(0);
});

test("a QEMU that goes away before it has greeted is closed, not taken", async () => {
  const qemu = new FakeQemu();
  const connecting = QmpClient.over(qemu.stream, qemu.clock).catch((caught: unknown) => caught);
  qemu.die();
  expect(await connecting).toMatchObject({ code: "closed" });
});

test("commands without a reply are limited in number", async () => {
  const qemu = new FakeQemu();
  const client = await qemu.connect();
  qemu.on("stop", () => undefined);
  const waiting = Array.from({ length: COMMANDS_MAX }, () => client.execute("stop").catch(() => "closed"));
  await expect(client.execute("stop")).rejects.toMatchObject({ code: "limit" });
  client.close();
  expect(await Promise.all(waiting)).toEqual(waiting.map(() => "closed"));
});

test.each([
  ["something that is not QMP", "SSH-2.0-OpenSSH_9.2\r\n"],
  ["a greeting of another protocol", '{"hello":"world"}\n'],
  ["what is not JSON", "{nonsense}\n"],
])("%s in place of the greeting is a broken protocol", async (_what, text) => {
  const qemu = new FakeQemu();
  const connecting = QmpClient.over(qemu.stream, qemu.clock);
  qemu.sayRaw(text);
  await expect(connecting).rejects.toBeInstanceOf(QmpProtocolError);
  expect(qemu.stream.closed).toBe(true);
});

test("a message without an end is cut off at the limit, whatever it is made of", () => {
  const splitter = new MessageSplitter();
  const piece = Buffer.alloc(64 * 1024, "x");
  splitter.push(Buffer.from('{"event":"'));
  expect(() => {
    for (let sent = 0; sent <= MESSAGE_BYTES_MAX; sent += piece.length) splitter.push(piece);
  }).toThrow(QmpProtocolError);
});

test("a result that is not as QMP has it fails the command, not the connection", async () => {
  const qemu = new FakeQemu();
  using client = await qemu.connect();
  qemu.on("query-status", () => ({ return: { running: "perhaps" } }));
  await expect(client.execute("query-status")).rejects.toBeInstanceOf(QmpProtocolError);
  expect((await client.execute("query-migrate")).status).toBeUndefined();
});

const TRICKY = { event: "E", data: { text: 'a "brace" } \\ { in \\" a string é😀', nested: { list: [{}, "}"] } } };

test("messages are found wherever the stream is cut, on one line or on many", () => {
  const text = `${JSON.stringify(TRICKY)}\r\n${JSON.stringify(TRICKY, undefined, 4)}\n`;
  const bytes = Buffer.from(text);
  for (let cut = 0; cut <= bytes.length; cut++) {
    const splitter = new MessageSplitter();
    // The bytes are gone as soon as the call returns.
    const pieces = [bytes.subarray(0, cut), bytes.subarray(cut)].map((piece) => Buffer.from(piece));
    const texts = pieces.flatMap((piece) => {
      const found = splitter.push(piece);
      piece.fill(0xee);
      return found;
    });
    expect(texts.map((found) => JSON.parse(found))).toEqual([TRICKY, TRICKY]);
  }
});

test("a connection works cut at any byte of the greeting", async () => {
  for (let cut = 0; cut < 120; cut++) {
    const qemu = new FakeQemu({ clientCut: cutAt(cut) });
    using client = await qemu.connect();
    expect(client.version).toBe("7.2.19");
  }
});

itSeeded("a conversation in pieces of any length is the same conversation", async (rng) => {
  const qemu = new FakeQemu({ clientCut: seeded(rng), serverCut: seeded(rng) });
  using client = await qemu.connect();
  const seen: string[] = [];
  client.listen(({ event }) => seen.push(event));
  qemu.on("echo", ({ arguments: args }) => ({ return: args }));
  for (let turn = 0; turn < 50; turn++) {
    const args = { turn, text: "{".repeat(rng.integer(0, 50)) };
    qemu.event(`E${turn}`, args);
    expect(await client.execute("echo", args)).toEqual(args);
  }
  expect(seen).toEqual(Array.from({ length: 50 }, (_, turn) => `E${turn}`));
});
