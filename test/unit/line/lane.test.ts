import { expect, test } from "vitest";
import { fateOf } from "../../../tools/line/faults.ts";
import { Lane, type Packet, type Shape } from "../../../tools/line/lane.ts";

const KIB = 1024;
const READ_BYTES = 64 * KIB;
const UNSHAPED: Shape = { rttMs: 0, bitsPerSecond: Number.POSITIVE_INFINITY, queueBytes: 256 * KIB };

function filled(length: number, value = 0x5a) {
  return { kind: "bytes", bytes: new Uint8Array(length).fill(value) } as const;
}

/** What `lane` delivers at `nowMs`. */
function deliveredAt(lane: Lane<string>, nowMs: number): Packet<string>[] {
  const packets: Packet<string>[] = [];
  lane.advance(nowMs, (packet) => packets.push(packet));
  return packets;
}

function byteCount(packets: readonly Packet<string>[]): number {
  return packets.reduce((sum, { load }) => sum + (load.kind === "bytes" ? load.bytes.length : 0), 0);
}

test("a lane carries its bandwidth, however late it is woken, and its queue stays bounded", () => {
  const lane = new Lane<string>({ rttMs: 10, bitsPerSecond: 1e9, queueBytes: 256 * KIB }, READ_BYTES);
  let delivered = 0;
  for (let nowMs = 0; nowMs <= 1005; nowMs++) {
    const packets = deliveredAt(lane, nowMs);
    delivered += byteCount(packets);
    for (const { dueMs, arrivedMs } of packets) expect(dueMs - arrivedMs - 5).toBeLessThan(2.1 + 1);
    while (lane.accepts) lane.push(nowMs, "a", filled(READ_BYTES));
  }
  expect(lane.queuedBytesPeak).toBeLessThanOrEqual(256 * KIB);
  expect(Math.abs(delivered / 125e6 - 1)).toBeLessThan(0.01);
});

test("two senders share one bottleneck in the order of their bytes", () => {
  const lane = new Lane<string>({ ...UNSHAPED, bitsPerSecond: 8e6 }, READ_BYTES); // 1000 bytes a millisecond
  lane.push(0, "a", filled(1000));
  lane.push(0, "b", filled(1000));
  expect(deliveredAt(lane, 0.99)).toEqual([]);
  expect(deliveredAt(lane, 1).map(({ to }) => to)).toEqual(["a"]);
  expect(deliveredAt(lane, 1.99)).toEqual([]);
  expect(deliveredAt(lane, 2).map(({ to }) => to)).toEqual(["b"]);
});

test("an idle bottleneck earns no credit", () => {
  const lane = new Lane<string>({ ...UNSHAPED, bitsPerSecond: 8e6 }, READ_BYTES);
  deliveredAt(lane, 500);
  lane.push(1000, "a", filled(1000));
  expect(deliveredAt(lane, 1000.99)).toEqual([]);
  expect(byteCount(deliveredAt(lane, 1001))).toBe(1000);
});

test("half the round-trip time is spent on the way, and the next delivery is announced", () => {
  const lane = new Lane<string>({ ...UNSHAPED, rttMs: 10 }, READ_BYTES);
  expect(lane.nextMs).toBe(Number.POSITIVE_INFINITY);
  lane.push(100, "a", filled(64));
  expect(deliveredAt(lane, 104.99)).toEqual([]);
  expect(lane.nextMs).toBe(105);
  expect(byteCount(deliveredAt(lane, 105))).toBe(64);
});

test("nothing overtakes when the round-trip time falls", () => {
  const lane = new Lane<string>({ ...UNSHAPED, rttMs: 100 }, READ_BYTES);
  lane.push(0, "first", filled(10));
  deliveredAt(lane, 0);
  lane.reshape(UNSHAPED);
  lane.push(1, "second", filled(10));
  expect(deliveredAt(lane, 49)).toEqual([]);
  expect(deliveredAt(lane, 50).map(({ to }) => to)).toEqual(["first", "second"]);
});

test("a stall delays what is under way by as long as it lasted, and loses nothing", () => {
  const lane = new Lane<string>({ ...UNSHAPED, rttMs: 10 }, READ_BYTES);
  lane.push(0, "a", filled(64, 1));
  deliveredAt(lane, 0);
  lane.stall(2);
  lane.push(3, "b", filled(64, 2));
  expect(deliveredAt(lane, 1000)).toEqual([]);
  expect(lane.nextMs).toBe(Number.POSITIVE_INFINITY);
  lane.resume(1002);
  expect(deliveredAt(lane, 1004.99)).toEqual([]);
  expect(deliveredAt(lane, 1005).map(({ to }) => to)).toEqual(["a"]);
  expect(deliveredAt(lane, 1007).map(({ to }) => to)).toEqual(["b"]);
});

test("a stalled lane takes what fits its queue and no more", () => {
  const lane = new Lane<string>({ ...UNSHAPED, queueBytes: 200 * KIB }, READ_BYTES);
  lane.stall(0);
  let reads = 0;
  for (; lane.accepts; reads++) lane.push(1, "a", filled(READ_BYTES));
  expect(reads).toBe(3);
});

test("a queue smaller than one read still lets one in", () => {
  const lane = new Lane<string>({ ...UNSHAPED, queueBytes: 1, bitsPerSecond: 8e6 }, READ_BYTES);
  expect(lane.accepts).toBe(true);
  lane.push(0, "a", filled(1000));
  expect(lane.accepts).toBe(false);
  deliveredAt(lane, 1);
  expect(lane.accepts).toBe(true);
});

test("the end of a stream comes after its bytes", () => {
  const lane = new Lane<string>({ ...UNSHAPED, bitsPerSecond: 8e6 }, READ_BYTES);
  lane.push(0, "a", filled(5000));
  lane.push(0, "a", { kind: "end" });
  const kinds = deliveredAt(lane, 5).map(({ load }) => load.kind);
  expect(kinds.at(-1)).toBe("end");
  expect(kinds.filter((kind) => kind === "end")).toHaveLength(1);
});

test("a cut falls exactly on its byte", () => {
  for (let afterBytes = 0; afterBytes < 300; afterBytes++) {
    let delivered = 0;
    for (let piece = 1, isCut = false; !isCut; piece++) {
      const fate = fateOf(piece, delivered, afterBytes);
      delivered += fate.deliverBytes;
      isCut = fate.cut;
    }
    expect(delivered).toBe(afterBytes);
  }
});

test("a cut at a byte that has already passed falls before the next one", () => {
  expect(fateOf(10, 100, 50)).toEqual({ deliverBytes: 0, cut: true });
});
