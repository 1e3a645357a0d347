import { expect, test } from "vitest";
import { CMD, readData, request } from "../../../support/nbd-wire.ts";
import { pattern } from "../../../support/patterns.ts";
import { ScriptedDevice } from "../../../support/scripted-device.ts";
import { ServerRig, settle } from "../../../support/server-rig.ts";

const KiB = 1024;
const SIZE = 4096 * KiB;
/** With all of this for payloads, a quarter is for clients below their share, and a share is a quarter. */
const PAYLOAD_MAX = 4096 * KiB;

async function connect() {
  const device = new ScriptedDevice({ sizeBytes: SIZE, content: pattern(0, SIZE) });
  device.quick = false;
  const rig = new ServerRig({ device, limits: { inFlightMax: 1, payloadBytesMax: PAYLOAD_MAX } });
  const { client } = await rig.open();
  const { client: other } = await rig.open();
  return { device, rig, client, other };
}

test("a payload is received to its end also while too many requests wait for the memory that it holds", async () => {
  const { device, rig, client, other } = await connect();
  const release = device.hold("read");
  const first = other.begin({ command: CMD.READ, offset: 0, length: 1536 * KiB });
  await settle();

  // Does not fit beside the other client's, and later not beside half a megabyte either.
  const large = { offset: 1024 * KiB, length: 2816 * KiB };
  const read = client.begin({ command: CMD.READ, ...large });
  const payload = Buffer.alloc(512 * KiB, 0x5b);
  const write = request({ command: CMD.WRITE, cookie: 77n, offset: 0, payload }, "simple");
  client.send(write.subarray(0, 300 * KiB));
  await settle();
  release();
  expect((await other.reply(first)).error).toBe(0);
  client.send(write.subarray(300 * KiB));
  await settle(20);

  // Compared without `toEqual`, which would describe the difference for minutes.
  expect(device.contents(0, payload.length).equals(payload)).toBe(true);
  expect((await client.take(16)).subarray(8)).toEqual(Buffer.from("000000000000004d", "hex"));
  const data = readData(await client.reply(read), large.offset, large.length);
  expect(data.equals(pattern(large.offset, large.length))).toBe(true);
  expect(rig.server.heldBytes).toBe(0);
});

test("requests behind such a payload wait until fewer are under way", async () => {
  const { device, client } = await connect();
  const release = device.hold("write");
  for (const index of [0, 1, 2, 3]) {
    client.begin({ command: CMD.WRITE, offset: index * KiB, payload: Buffer.alloc(KiB, index + 1) });
  }
  await settle();
  expect(device.count("write")).toBe(2);
  release();
  await settle();
  expect(device.count("write")).toBe(4);
});
