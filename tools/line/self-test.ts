/** `node tools/line/self-test.ts`: how exact a line is on this machine, and what it costs. Takes half a minute. */
import { once } from "node:events";
import { type AddressInfo, connect, createServer, type Socket } from "node:net";
import type { Address } from "../../src/env/links.ts";
import { startLine } from "./client.ts";

const PINGS = 300;
const PING_BYTES = 64;
const WARM_UP_MS = 500;
const FLOW_MS = 3000;
const CHUNK = Buffer.alloc(256 * 1024, 0xa5);

async function targetServer(onSocket: (socket: Socket) => void): Promise<{ address: Address; close(): void }> {
  const server = createServer(onSocket).listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address() as AddressInfo;
  return { address: { kind: "tcp", host: "127.0.0.1", port }, close: () => server.close() };
}

async function dialled(address: Address): Promise<Socket> {
  const socket = address.kind === "tcp" ? connect(address.port, address.host) : connect(address.path);
  socket.setNoDelay(true);
  await once(socket, "connect");
  return socket.on("error", () => undefined);
}

const pause = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));

/** The median, and other quantiles, of the time that an echo takes; `idleMs`: before each. */
async function echoes(socket: Socket, idleMs: number): Promise<string> {
  const times: number[] = [];
  for (let ping = 0; ping < PINGS; ping++) {
    if (idleMs > 0) await pause(idleMs);
    const sentMs = performance.now();
    socket.write(Buffer.alloc(PING_BYTES, 1));
    await once(socket, "data");
    times.push(performance.now() - sentMs);
  }
  times.sort((a, b) => a - b);
  const at = (part: number): string => (times[Math.floor(part * (times.length - 1))] ?? 0).toFixed(2);
  return `median ${at(0.5)}, p1 ${at(0.01)}, p99 ${at(0.99)} ms`;
}

/** Next to what the same echo takes without a line after as much idleness, for waking up costs time as well. */
async function measureRoundTrips(rttMs: number): Promise<void> {
  const target = await targetServer((socket) => {
    socket.setNoDelay(true);
    socket.on("error", () => undefined).on("data", (bytes) => socket.write(bytes));
  });
  await using line = await startLine({ target: target.address, rttMs });
  const socket = await dialled(line.address);
  await pause(rttMs * 2 + 100);
  const before = await line.resetStats();
  const startedMs = performance.now();
  const shaped = await echoes(socket, 0);
  const elapsedMs = performance.now() - startedMs;
  const { cpuMs, up, down } = await line.stats();
  const direct = await dialled(target.address);
  const unshaped = await echoes(direct, rttMs / 2);
  console.log(
    `round trip ${rttMs} ms: ${shaped}; ${((cpuMs - before.cpuMs) / elapsedMs).toFixed(2)} cores; ` +
      `late p50 ${up.latenessMs.p50} + ${down.latenessMs.p50} ms; without a line: ${unshaped}`,
  );
  socket.destroy();
  direct.destroy();
  target.close();
}

async function measureFlow(bitsPerSecond: number, rttMs: number): Promise<void> {
  const target = await targetServer((socket) => {
    socket.on("error", () => undefined).resume();
  });
  await using line = await startLine({ target: target.address, rttMs, bitsPerSecond });
  const socket = await dialled(line.address);
  let flowing = true;
  const fill = (): void => {
    while (flowing && socket.write(CHUNK));
  };
  socket.on("drain", fill);
  fill();
  await pause(WARM_UP_MS);
  const before = await line.resetStats();
  const startedMs = performance.now();
  await pause(FLOW_MS);
  const stats = await line.stats();
  const elapsedMs = performance.now() - startedMs;
  flowing = false;
  const megabits = (stats.up.deliveredBytes * 8) / elapsedMs / 1000;
  const asked = Number.isFinite(bitsPerSecond) ? `${bitsPerSecond / 1e6}` : "unlimited";
  const { p50, p99, max } = stats.up.residenceMs;
  const cores = ((stats.cpuMs - before.cpuMs) / elapsedMs).toFixed(2);
  console.log(
    `bandwidth ${asked} Mb/s, round trip ${rttMs} ms: ${megabits.toFixed(2)} Mb/s; ` +
      `residence p50 ${p50}, p99 ${p99}, max ${max} ms; late p99 ${stats.up.latenessMs.p99} ms; ${cores} cores`,
  );
  socket.destroy();
  target.close();
}

async function main(): Promise<void> {
  for (const rttMs of [0, 1, 10]) await measureRoundTrips(rttMs);
  for (const [megabits, rttMs] of [
    [0.8192, 0],
    [100, 0],
    [100, 10],
    [1000, 0],
    [1000, 10],
  ] as const) {
    await measureFlow(megabits * 1e6, rttMs);
  }
  await measureFlow(Number.POSITIVE_INFINITY, 0);
  await measureFlow(Number.POSITIVE_INFINITY, 1);
}

await main();
