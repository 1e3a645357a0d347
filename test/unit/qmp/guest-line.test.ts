import { expect, test } from "vitest";
import { type Answer, GuestCaller, GuestLine, Order } from "../../../src/qmp/guest-line.ts";
import { byteByByte, type PairOptions, streamPair } from "../../support/stream-pair.ts";
import { settle } from "./fake-qemu.ts";

/** A destination that answers orders as it is told to. */
function rig(answers: (order: Order) => Answer | undefined, options: PairOptions = {}) {
  const { client, server } = streamPair(options);
  const orders: Order[] = [];
  const closed = Promise.withResolvers<Error | undefined>();
  const line = new GuestLine<typeof Order, Answer>(server, Order, {
    onMessage: (order) => {
      orders.push(order);
      const answer = answers(order);
      if (answer !== undefined) line.send(answer);
    },
    onClose: closed.resolve,
  });
  return { caller: new GuestCaller(client), client, line, orders, closed: closed.promise };
}

const ANSWERS: Readonly<Record<Order["type"], Answer>> = {
  check: { type: "checked", problems: ['it is in state "running"'] },
  receive: { type: "listening" },
  look: { type: "seen", arrived: true },
  start: { type: "started", running: true, status: "running" },
  abandon: { type: "abandoned" },
};

test("every order has its answer, wherever the stream is cut", async () => {
  const { caller, orders, closed } = rig(({ type }) => ANSWERS[type], { clientCut: byteByByte, serverCut: byteByByte });
  expect(await caller.ask({ type: "check" }, "checked")).toEqual(ANSWERS.check);
  expect(await caller.ask({ type: "receive", guestWasRunning: false }, "listening")).toEqual(ANSWERS.receive);
  expect(await caller.ask({ type: "look" }, "seen")).toEqual(ANSWERS.look);
  expect(await caller.ask({ type: "start" }, "started")).toEqual(ANSWERS.start);
  expect(await caller.ask({ type: "abandon", reason: 'it is "full"' }, "abandoned")).toEqual(ANSWERS.abandon);
  expect(orders.map(({ type }) => type)).toEqual(["check", "receive", "look", "start", "abandon"]);
  caller.end();
  expect(await closed).toBeUndefined();
});

test("what the destination's QEMU refuses keeps its code and its advice", async () => {
  const { caller } = rig(() => ({ type: "cannot", code: "taken", reason: "libvirt has it", hint: "ask libvirt" }));
  const refusal = { code: "taken", message: "on the destination: libvirt has it", hint: "ask libvirt" };
  await expect(caller.ask({ type: "check" }, "checked")).rejects.toMatchObject(refusal);
});

test("a destination that knows nothing of guests is not mistaken for one that was lost", async () => {
  const deaf = rig(() => undefined);
  const asked = deaf.caller.ask({ type: "check" }, "checked");
  await settle();
  deaf.line.destroy();
  await expect(asked).rejects.toMatchObject({ code: "closed", hint: expect.stringContaining("--qmp") as string });

  const lost = rig(({ type }) => (type === "check" ? ANSWERS.check : undefined));
  await lost.caller.ask({ type: "check" }, "checked");
  const second = lost.caller.ask({ type: "start" }, "started");
  await settle();
  lost.line.destroy();
  await expect(second).rejects.toMatchObject({ code: "closed", message: expect.stringContaining("lost") as string });
  await expect(lost.caller.ask({ type: "start" }, "started")).rejects.toMatchObject({ code: "closed" });
});

test("an answer to something else ends the conversation", async () => {
  const { caller, closed } = rig(() => ANSWERS.receive);
  await expect(caller.ask({ type: "abandon", reason: "x" }, "abandoned")).rejects.toThrow("listening");
  await closed;
});

test.each(["[]", '{"type":"start","more":1}', '{"type":"reboot"}', "{]}"])("%s is no order", async (text) => {
  const { client, orders, closed } = rig(({ type }) => ANSWERS[type]);
  client.write(Buffer.from(`${text}\n`));
  await closed;
  expect(orders).toEqual([]);
});
