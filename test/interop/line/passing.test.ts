import { once } from "node:events";
import { expect, test } from "vitest";
import { startLine } from "../../../tools/line/client.ts";
import { counts, itSeeded } from "../../support/seed.ts";
import { tempDir } from "../../support/temp-dir.ts";
import { acceptedAtRest, dialLine, Receiver, sendPattern, startTarget, throughLine } from "./endpoints.ts";

const MIB = 1024 * 1024;
const QUEUE_BYTES = 256 * 1024;

for (const kind of ["tcp", "unix"] as const) {
  itSeeded(`64 MiB pass both ways at once, in pieces of any size, over ${kind}`, async (rng) => {
    using folder = tempDir();
    await using target = await startTarget(kind === "unix" ? folder.file("target") : undefined);
    const listen = kind === "unix" ? { listen: { kind, path: folder.file("line") } as const } : {};
    await using line = await startLine({ target: target.address, rttMs: 2, bitsPerSecond: 4e9, ...listen });
    expect(line.address.kind).toBe(kind);
    const { near, far } = await throughLine(line, target);
    const [atNear, atFar] = [new Receiver(near), new Receiver(far)];
    const [up, down] = await Promise.all([sendPattern(near, 64 * MIB, rng), sendPattern(far, 64 * MIB, rng)]);
    near.end();
    far.end();
    expect(await atFar.finished()).toBe(64 * MIB);
    expect(await atNear.finished()).toBe(64 * MIB);
    expect(atFar.hash.digest("hex")).toBe(up);
    expect(atNear.hash.digest("hex")).toBe(down);
    const stats = await line.stats();
    for (const { acceptedBytes, deliveredBytes, lostBytes, queuedBytesPeak } of [stats.up, stats.down]) {
      expect({ acceptedBytes, deliveredBytes, lostBytes }).toEqual({
        acceptedBytes: 64 * MIB,
        deliveredBytes: 64 * MIB,
        lostBytes: 0,
      });
      expect(queuedBytesPeak).toBeLessThanOrEqual(QUEUE_BYTES);
    }
  });
}

test("a round trip takes the time that was asked for, also when that changes", async () => {
  await using target = await startTarget();
  await using line = await startLine({ target: target.address });
  const { near, far } = await throughLine(line, target);
  far.pipe(far);
  near.resume();
  for (const rttMs of [50, 0, 20]) {
    await line.set({ rttMs });
    const startedMs = performance.now();
    near.write("ping");
    await once(near, "data");
    const elapsedMs = performance.now() - startedMs;
    expect(elapsedMs).toBeGreaterThanOrEqual(rttMs - 1);
    expect((await line.stats()).rttMs).toBe(rttMs);
  }
});

itSeeded("connections share the bandwidth of a direction", async (rng) => {
  await using target = await startTarget();
  await using line = await startLine({ target: target.address, bitsPerSecond: 80e6 });
  const first = await throughLine(line, target);
  const second = await throughLine(line, target);
  const receivers = [new Receiver(first.far), new Receiver(second.far)];
  const startedMs = performance.now();
  await Promise.all([sendPattern(first.near, MIB, rng), sendPattern(second.near, MIB, rng)]);
  await Promise.all(receivers.map((receiver) => receiver.has(MIB)));
  // 2 MiB at 10 MB/s. With 10 MB/s for each they would take half as long.
  expect(performance.now() - startedMs).toBeGreaterThanOrEqual(195);
  expect((await line.stats()).up.residenceMs.max).toBeGreaterThan(0);
});

itSeeded("the end of a stream passes, and the other direction lives on", async (rng) => {
  await using target = await startTarget();
  await using line = await startLine({ target: target.address, rttMs: 4 });
  const { near, far } = await throughLine(line, target);
  const [atNear, atFar] = [new Receiver(near), new Receiver(far)];
  await sendPattern(near, 1000, rng);
  near.end();
  expect(await atFar.finished()).toBe(1000);
  const sent = await sendPattern(far, MIB, rng);
  far.end();
  expect(await atNear.finished()).toBe(MIB);
  expect(atNear.hash.digest("hex")).toBe(sent);
});

itSeeded("a reader that stops makes the writer stop, and nothing is lost when it goes on", async (rng) => {
  using folder = tempDir();
  // The buffers of a unix socket do not grow, so that the bound is near.
  await using target = await startTarget(folder.file("target"));
  await using line = await startLine({ target: target.address, bitsPerSecond: 8e9 });
  const { near, far } = await throughLine(line, target);
  const sending = sendPattern(near, 32 * MIB, rng);
  expect(await acceptedAtRest(line)).toBeLessThan(2 * MIB);
  const atFar = new Receiver(far);
  const sent = await sending;
  await atFar.has(32 * MIB);
  expect(atFar.hash.digest("hex")).toBe(sent);
});

itSeeded("lines that are busy until they end do end", async (rng) => {
  const passing = async (): Promise<void> => {
    using folder = tempDir();
    await using target = await startTarget(folder.file("target"));
    await using line = await startLine({ target: target.address, bitsPerSecond: 8e9 });
    const { near, far } = await throughLine(line, target);
    const sending = sendPattern(near, 32 * MIB, rng);
    await acceptedAtRest(line);
    const atFar = new Receiver(far);
    await Promise.all([sending, atFar.has(32 * MIB)]);
  };
  // With Node's own way out, one in ten stayed for ever where there was more to do than there were cores.
  for (let round = 0; round < counts({ local: 1, ci: 8 }); round++) {
    await Promise.all(Array.from({ length: 4 }, passing));
  }
});

test("what a target refuses, the line drops", async () => {
  using folder = tempDir();
  await using line = await startLine({ target: { kind: "unix", path: folder.file("nobody") } });
  const near = await dialLine(line);
  expect(await new Receiver(near).finished()).toBe(0);
  expect((await line.stats()).dialFailures).toBe(1);
});
