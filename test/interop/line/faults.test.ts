import { spawn } from "node:child_process";
import { createHash } from "node:crypto";
import { once } from "node:events";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { expect, test } from "vitest";
import { startLine } from "../../../tools/line/client.ts";
import { parseAddress } from "../../../tools/line/options.ts";
import { pattern } from "../../support/patterns.ts";
import { itSeeded } from "../../support/seed.ts";
import { tempDir } from "../../support/temp-dir.ts";
import { acceptedAtRest, dialLine, Receiver, sendPattern, startTarget, statsWhen, throughLine } from "./endpoints.ts";

const MIB = 1024 * 1024;
const QUEUE_BYTES = 256 * 1024;
const CLIENT = join(import.meta.dirname, "../../../tools/line/client.ts");

const cutPoints = [0, 1, 27, 28, 4096, MIB].flatMap((afterBytes) =>
  (["rst", "fin"] as const).flatMap((how) =>
    (["tcp", "unix"] as const).map((kind) => ({ afterBytes, how, kind, direction: "up" as const })),
  ),
);
const downwards = [
  { afterBytes: 28, how: "rst", kind: "tcp", direction: "down" },
  { afterBytes: MIB, how: "rst", kind: "tcp", direction: "down" },
] as const;

for (const { afterBytes, how, kind, direction } of [...cutPoints, ...downwards]) {
  itSeeded(`a ${how} cut ${direction} over ${kind} falls after exactly ${afterBytes} bytes`, async (rng) => {
    using folder = tempDir();
    await using target = await startTarget(kind === "unix" ? folder.file("target") : undefined);
    await using line = await startLine({ target: target.address, rttMs: 1 });
    await line.cut({ direction, afterBytes, how, from: "start" });
    const { near, far } = await throughLine(line, target);
    const [sender, receiver] = direction === "up" ? [near, far] : [far, near];
    const received = new Receiver(receiver);
    sender.resume();
    const cut = new Promise((resolve) => sender.once("close", resolve).once("end", resolve));
    sendPattern(sender, afterBytes + 100_000, rng).catch(() => undefined);
    expect(await received.finished()).toBe(afterBytes);
    expect(received.hash.digest("hex")).toBe(createHash("sha256").update(pattern(0, afterBytes)).digest("hex"));
    await cut;
    expect((await line.stats()).connections.cut).toBe(1);
  });
}

itSeeded("a cut from now on counts from the command; a second connection is spared", async (rng) => {
  await using target = await startTarget();
  await using line = await startLine({ target: target.address });
  const first = await throughLine(line, target);
  const atFar = new Receiver(first.far);
  await sendPattern(first.near, 5000, rng);
  await atFar.has(5000);
  await line.cut({ direction: "up", afterBytes: 100 });
  sendPattern(first.near, 5000, rng).catch(() => undefined);
  expect(await atFar.finished()).toBe(5100);
  const second = await throughLine(line, target);
  const atSecond = new Receiver(second.far);
  await sendPattern(second.near, 5000, rng);
  await atSecond.has(5000);
});

test("a cut now breaks every connection for both sides", async () => {
  await using target = await startTarget();
  await using line = await startLine({ target: target.address });
  const pairs = [await throughLine(line, target), await throughLine(line, target)];
  const ends = pairs.flatMap(({ near, far }) => [new Receiver(near), new Receiver(far)]);
  await line.cutNow();
  for (const end of ends) expect(await end.finished()).toBe(0);
  const stats = await statsWhen(line, ({ connections }) => connections.open === 0);
  expect(stats.connections).toEqual({ open: 0, made: 2, cut: 2 });
});

itSeeded("a stall passes nothing and holds the sender back; after resume nothing is missing", async (rng) => {
  await using target = await startTarget();
  await using line = await startLine({ target: target.address, rttMs: 2, bitsPerSecond: 2e9 });
  const { near, far } = await throughLine(line, target);
  const [atNear, atFar] = [new Receiver(near), new Receiver(far)];
  await line.stall("both");
  const sending = [sendPattern(near, 32 * MIB, rng), sendPattern(far, 4 * MIB, rng)];
  const accepted = await acceptedAtRest(line);
  expect(accepted).toBeGreaterThan(0);
  expect(accepted).toBeLessThanOrEqual(QUEUE_BYTES);
  expect([atFar.bytes, atNear.bytes]).toEqual([0, 0]);
  await line.resume();
  const [up, down] = await Promise.all(sending);
  await Promise.all([atFar.has(32 * MIB), atNear.has(4 * MIB)]);
  expect(atFar.hash.digest("hex")).toBe(up);
  expect(atNear.hash.digest("hex")).toBe(down);
});

itSeeded("a stall of one direction leaves the other alone", async (rng) => {
  await using target = await startTarget();
  await using line = await startLine({ target: target.address });
  const { near, far } = await throughLine(line, target);
  const [atNear, atFar] = [new Receiver(near), new Receiver(far)];
  await line.stall("up");
  await Promise.all([sendPattern(near, 5000, rng), sendPattern(far, MIB, rng)]);
  await atNear.has(MIB);
  await statsWhen(line, ({ up }) => up.acceptedBytes === 5000);
  expect(atFar.bytes).toBe(0);
  await line.resume();
  await atFar.has(5000);
});

test("a connection made during a stall reaches the target after it", async () => {
  await using target = await startTarget();
  await using line = await startLine({ target: target.address });
  await line.stall();
  let reached = false;
  const next = target.nextSocket().then(() => {
    reached = true;
  });
  await dialLine(line);
  await statsWhen(line, ({ connections }) => connections.open === 1);
  expect(reached).toBe(false);
  await line.resume();
  await next;
});

itSeeded("loss of one direction swallows it while the other works, and a hole is never bridged", async (rng) => {
  await using target = await startTarget();
  await using line = await startLine({ target: target.address });
  const { near, far } = await throughLine(line, target);
  const [atNear, atFar] = [new Receiver(near), new Receiver(far)];
  await line.lose("up");
  await Promise.all([sendPattern(near, 4 * MIB, rng), sendPattern(far, MIB, rng)]);
  await atNear.has(MIB);
  await statsWhen(line, ({ up }) => up.lostBytes === 4 * MIB);
  await line.resume();
  await sendPattern(near, 1000, rng);
  await statsWhen(line, ({ up }) => up.lostBytes === 4 * MIB + 1000);
  expect(atFar.bytes).toBe(0);
  const fresh = await throughLine(line, target);
  const atFresh = new Receiver(fresh.far);
  await sendPattern(fresh.near, 1000, rng);
  await atFresh.has(1000);
});

test("a line that refuses cannot be dialled, until it accepts again at the same address", async () => {
  await using target = await startTarget();
  await using line = await startLine({ target: target.address });
  await line.refuse();
  await expect(dialLine(line)).rejects.toThrow("ECONNREFUSED");
  await line.refuse(false);
  await throughLine(line, target);
});

test("an objection does not end the line", async () => {
  await using target = await startTarget();
  await using line = await startLine({ target: target.address });
  await expect(line.set({ rttMs: -1 })).rejects.toThrow('"set" cannot be');
  await line.set({ rttMs: 1, bitsPerSecond: Number.POSITIVE_INFINITY, queueBytes: 4096 });
  expect(await line.resetStats()).toMatchObject({ rttMs: 1, bitsPerSecond: null, queueBytes: 4096 });
});

test("a line whose target cannot be named does not start", async () => {
  await expect(startLine({ target: { kind: "unix", path: "" } })).rejects.toThrow("has ended");
});

test("a line ends when the process that started it is killed", async () => {
  await using target = await startTarget();
  const script = `
    import { formatAddress } from ${JSON.stringify(join(import.meta.dirname, "../../../src/env/links.ts"))};
    import { startLine } from ${JSON.stringify(CLIENT)};
    const line = await startLine(${JSON.stringify({ target: target.address })});
    console.log(formatAddress(line.address));`;
  const parent = spawn(process.execPath, ["--input-type=module", "--eval", script], {
    stdio: ["ignore", "pipe", "inherit"],
  });
  const [text] = (await once(createInterface({ input: parent.stdout }), "line")) as [string];
  const line = { address: parseAddress(text) };
  const next = target.nextSocket();
  const near = await dialLine(line);
  await next;
  parent.kill("SIGKILL");
  expect(await new Receiver(near).finished()).toBe(0);
  await expect(dialLine(line)).rejects.toThrow("ECONNREFUSED");
});
