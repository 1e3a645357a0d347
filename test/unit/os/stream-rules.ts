/** What `ByteStream` promises, tried on real sockets. Run with the native calls and without them: two files, because a process decides once. */
import { createServer, type Socket } from "node:net";
import { afterEach, describe, expect, test } from "vitest";
import type { Address, ByteSink, ByteStream } from "../../../src/env/links.ts";
import { dial } from "../../../src/os/dial.ts";
import { listenOn } from "../../../src/os/listen.ts";
import { pattern } from "../../support/patterns.ts";
import { itSeeded } from "../../support/seed.ts";
import { tempDir } from "../../support/temp-dir.ts";

const MIB = 1024 * 1024;
const cleanups: (() => void)[] = [];
afterEach(() => {
  for (const cleanup of cleanups.splice(0).reverse()) cleanup();
});

/** Notes everything that a stream tells. */
class NotingSink implements ByteSink {
  readonly told: string[] = [];
  readonly parts: Buffer[] = [];
  bytes = 0;
  error: Error | undefined;
  readonly end = Promise.withResolvers<void>();
  readonly close = Promise.withResolvers<void>();
  /** Called with each piece before the sink returns. */
  onPiece: ((bytes: Uint8Array) => void) | undefined;

  onBytes(bytes: Uint8Array): void {
    if (this.told.at(-1) !== "bytes") this.told.push("bytes");
    this.bytes += bytes.length;
    this.parts.push(Buffer.from(bytes));
    this.onPiece?.(bytes);
  }

  onEnd(): void {
    this.told.push("end");
    this.end.resolve();
  }

  onDrain(): void {
    this.told.push("drain");
  }

  onClose(error?: Error): void {
    this.told.push("close");
    this.error = error;
    this.close.resolve();
  }

  get all(): Buffer {
    return Buffer.concat(this.parts);
  }
}

type Family = "tcp" | "unix";

function anyAddress(family: Family): Address {
  if (family === "tcp") return { kind: "tcp", host: "127.0.0.1", port: 0 };
  const dir = tempDir();
  cleanups.push(() => dir[Symbol.dispose]());
  return { kind: "unix", path: dir.file("s") };
}

/** One end that was dialled, and one that was accepted. */
async function pairOf(family: Family): Promise<{ dialled: ByteStream; accepted: ByteStream }> {
  const arrival = Promise.withResolvers<ByteStream>();
  const listener = await listenOn(anyAddress(family), (stream) => arrival.resolve(stream));
  const dialled = await dial(listener.address);
  const accepted = await arrival.promise;
  cleanups.push(
    () => listener.close(),
    () => dialled.destroy(),
    () => accepted.destroy(),
  );
  return { dialled, accepted };
}

/** An accepted stream, and the client's bare socket, for misbehaving with. */
async function withBareClient(): Promise<{ stream: ByteStream; socket: Socket }> {
  const server = createServer({ pauseOnConnect: true, allowHalfOpen: true });
  const arrival = Promise.withResolvers<Socket>();
  server.on("connection", (socket) => arrival.resolve(socket));
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const { port } = server.address() as { port: number };
  const stream = await dial({ kind: "tcp", host: "127.0.0.1", port });
  const socket = await arrival.promise;
  cleanups.push(
    () => server.close(),
    () => socket.destroy(),
    () => stream.destroy(),
  );
  return { stream, socket };
}

const turn = () => new Promise((resolve) => setImmediate(resolve));

export function describeStreams(how: string): void {
  for (const family of ["tcp", "unix"] as const) {
    describe(`a ${family} stream, ${how}`, () => {
      itSeeded(
        `carries bytes both ways, also from buffers that are used again as soon as they are released (${family}, ${how})`,
        async (rng) => {
          const { dialled, accepted } = await pairOf(family);
          const ends = [
            { stream: dialled, sink: new NotingSink(), sent: pattern(0, 6 * MIB, 1) },
            { stream: accepted, sink: new NotingSink(), sent: pattern(0, 6 * MIB, 2) },
          ];
          let released = 0;
          let written = 0;
          for (const { stream, sink, sent } of ends) {
            stream.attach(sink);
            for (let at = 0; at < sent.length; ) {
              const length = Math.min(rng.integer(1, rng.chance(0.5) ? 3000 : 400_000), sent.length - at);
              const buffer = Buffer.from(sent.subarray(at, at + length));
              written++;
              stream.write(buffer, () => {
                released++;
                buffer.fill(0xee);
              });
              at += length;
            }
            stream.end();
          }
          await Promise.all(ends.flatMap(({ sink }) => [sink.end.promise, sink.close.promise]));
          expect(ends[0]?.sink.all.equals(pattern(0, 6 * MIB, 2))).toBe(true);
          expect(ends[1]?.sink.all.equals(pattern(0, 6 * MIB, 1))).toBe(true);
          expect([released, ends.map(({ sink }) => sink.error)]).toEqual([written, [undefined, undefined]]);
          for (const { sink } of ends) {
            const fromEnd = sink.told.slice(sink.told.indexOf("end"));
            // The other end may have sent all before it has taken all: then there is still room to tell of.
            expect(fromEnd.filter((told) => told !== "drain")).toEqual(["end", "close"]);
            expect(fromEnd.at(-1)).toBe("close");
          }
        },
      );

      test("does not deliver while it is paused, and nothing is lost", async () => {
        const { dialled, accepted } = await pairOf(family);
        const sink = new NotingSink();
        let paused = false;
        sink.onPiece = () => {
          expect(paused).toBe(false);
          accepted.pause();
          paused = true;
          setImmediate(() => {
            paused = false;
            accepted.resume();
          });
        };
        accepted.attach(sink);
        dialled.attach(new NotingSink());
        dialled.write(pattern(0, 4 * MIB));
        dialled.end();
        await sink.end.promise;
        expect(sink.all.equals(pattern(0, 4 * MIB))).toBe(true);
      });

      test("tells of the end only when it is not paused", async () => {
        const { dialled, accepted } = await pairOf(family);
        const sink = new NotingSink();
        accepted.attach(sink);
        accepted.pause();
        dialled.attach(new NotingSink());
        dialled.write(Buffer.from("last words"));
        dialled.end();
        for (let i = 0; i < 20; i++) await turn();
        expect(sink.told).toEqual([]);
        accepted.resume();
        await sink.end.promise;
        expect([sink.told, sink.all.toString()]).toEqual([["bytes", "end"], "last words"]);
      });

      test("still sends when the peer has ended, and still receives when it has ended itself", async () => {
        const { dialled, accepted } = await pairOf(family);
        const [near, far] = [new NotingSink(), new NotingSink()];
        dialled.attach(near);
        accepted.attach(far);
        dialled.end();
        await far.end.promise;
        accepted.write(pattern(0, MIB));
        accepted.end();
        await near.end.promise;
        expect(near.all.equals(pattern(0, MIB))).toBe(true);
        await Promise.all([near.close.promise, far.close.promise]);
        expect([near.error, far.error]).toEqual([undefined, undefined]);
      });

      test("puts bytes where the sink wants them, and elsewhere when it does not mind", async () => {
        for (const receiver of ["dialled", "accepted"] as const) {
          const pair = await pairOf(family);
          const [to, from] = receiver === "dialled" ? [pair.dialled, pair.accepted] : [pair.accepted, pair.dialled];
          const place = Buffer.alloc(3 * MIB);
          const wants = { from: MIB, to: 4 * MIB };
          let inPlace = 0;
          const sink = new NotingSink();
          sink.onPiece = (bytes) => {
            const at = sink.bytes - bytes.length;
            if (at < wants.from || at >= wants.to) return;
            // The piece that was on its way when the wish was made may come by the old path.
            if (bytes.buffer !== place.buffer) return;
            expect(bytes.byteOffset).toBe(place.byteOffset + at - wants.from);
            inPlace += bytes.length;
          };
          const wishing = Object.assign(sink, {
            receiveInto: () =>
              sink.bytes >= wants.from && sink.bytes < wants.to ? place.subarray(sink.bytes - wants.from) : undefined,
          });
          to.attach(wishing);
          from.attach(new NotingSink());
          from.write(pattern(0, 6 * MIB));
          from.end();
          await sink.end.promise;
          expect(sink.all.equals(pattern(0, 6 * MIB))).toBe(true);
          expect(inPlace).toBeGreaterThan(2 * MIB);
        }
      });

      test("hands over to another sink between two pieces", async () => {
        const { dialled, accepted } = await pairOf(family);
        const [first, second] = [new NotingSink(), new NotingSink()];
        first.onPiece = () => accepted.attach(second);
        accepted.attach(first);
        dialled.attach(new NotingSink());
        dialled.write(pattern(0, 3 * MIB));
        dialled.end();
        await second.end.promise;
        expect(Buffer.concat([first.all, second.all]).equals(pattern(0, 3 * MIB))).toBe(true);
        expect(first.told).toEqual(["bytes"]);
      });

      test("counts what the kernel has not taken, and tells when that has come down to nothing", async () => {
        const { dialled, accepted } = await pairOf(family);
        const [near, far] = [new NotingSink(), new NotingSink()];
        dialled.attach(near);
        dialled.write(Buffer.alloc(100));
        expect(dialled.pendingBytes).toBe(0);
        for (let i = 0; i < 5; i++) await turn();
        expect(near.told).toEqual([]);
        dialled.write(pattern(0, 32 * MIB));
        expect(dialled.pendingBytes).toBeGreaterThan(MIB);
        accepted.attach(far);
        await expect.poll(() => near.told, { interval: 5, timeout: 10_000 }).toEqual(["drain"]);
        expect(dialled.pendingBytes).toBe(0);
      });

      test("destroyed, it releases every buffer, tells of its close once, and ignores what comes after", async () => {
        const { dialled, accepted } = await pairOf(family);
        const near = new NotingSink();
        dialled.attach(near);
        accepted.attach(new NotingSink());
        accepted.pause();
        const releases: number[] = [];
        for (let i = 0; i < 20; i++) dialled.write(Buffer.alloc(MIB), () => void releases.push(i));
        const error = new Error("enough");
        dialled.destroy(error);
        dialled.destroy(new Error("more than enough"));
        dialled.write(Buffer.alloc(10), () => void releases.push(20));
        await near.close.promise;
        for (let i = 0; i < 5; i++) await turn();
        expect(releases.toSorted((a, b) => a - b)).toEqual(Array.from({ length: 21 }, (_, i) => i));
        expect([near.told.filter((what) => what !== "drain"), near.error]).toEqual([["close"], error]);
        expect(near.told.at(-1)).toBe("close");
        dialled.pause();
        dialled.resume();
        dialled.end();
      });

      test("lost, it has no room until it is closed: who waits for room does not go on as if all were taken", async () => {
        const { dialled } = await pairOf(family);
        const sink = new NotingSink();
        dialled.attach(sink);
        dialled.destroy();
        let releases = 0;
        for (let i = 0; i < 50; i++) dialled.write(Buffer.alloc(MIB), () => void releases++);
        expect([releases, dialled.pendingBytes, sink.told]).toEqual([0, 50 * MIB, []]);
        await sink.close.promise;
        await turn();
        expect([releases, dialled.pendingBytes]).toEqual([50, 0]);
      });

      test("whoever attaches after the close is told of it", async () => {
        const { dialled } = await pairOf(family);
        const [first, second] = [new NotingSink(), new NotingSink()];
        dialled.attach(first);
        dialled.destroy();
        await first.close.promise;
        dialled.attach(second);
        expect(second.told).toEqual(["close"]);
      });
    });
  }

  describe(`a reset by the peer, ${how}`, () => {
    test("while reading is a close with an error, the last thing that is told", async () => {
      const { stream, socket } = await withBareClient();
      const sink = new NotingSink();
      stream.attach(sink);
      socket.resetAndDestroy();
      await sink.close.promise;
      await turn();
      expect(sink.told).toEqual(["close"]);
      expect((sink.error as NodeJS.ErrnoException).code).toMatch(/ECONNRESET|EPIPE/);
    });

    test("while writing releases every buffer once, what was still queued after the close, and raises no signal", async () => {
      const { stream, socket } = await withBareClient();
      const sink = new NotingSink();
      stream.attach(sink);
      for (let i = 0; i < 10; i++) stream.write(Buffer.alloc(MIB), () => void sink.told.push("release"));
      const before = sink.told.length;
      socket.resetAndDestroy();
      await sink.close.promise;
      await turn();
      const after = sink.told.slice(before).filter((what) => what !== "drain");
      expect(after).toEqual(["close", ...Array(10 - before).fill("release")]);
      let releases = 0;
      for (let i = 0; i < 50; i++) stream.write(Buffer.alloc(10), () => void releases++);
      expect(releases).toBe(50);
    });

    test("between two writes is noticed by the second", async () => {
      const { stream, socket } = await withBareClient();
      const sink = new NotingSink();
      stream.attach(sink);
      stream.pause();
      socket.resetAndDestroy();
      for (let i = 0; i < 20; i++) await turn();
      let releases = 0;
      for (let i = 0; i < 5; i++) stream.write(Buffer.alloc(10), () => void releases++);
      await sink.close.promise;
      expect([releases, sink.error]).toEqual([5, expect.any(Error)]);
    });
  });

  test(`streams that receive at the same time do not mix their bytes, ${how}`, async () => {
    const pairs = await Promise.all(Array.from({ length: 8 }, (_, i) => pairOf(i % 2 === 0 ? "tcp" : "unix")));
    const sinks = pairs.map(({ dialled, accepted }, i) => {
      const sink = new NotingSink();
      accepted.attach(sink);
      dialled.attach(new NotingSink());
      for (let at = 0; at < 2 * MIB; at += 64 * 1024) dialled.write(pattern(at, 64 * 1024, i + 1));
      dialled.end();
      return sink;
    });
    await Promise.all(sinks.map(({ end }) => end.promise));
    for (const [i, sink] of sinks.entries()) expect(sink.all.equals(pattern(0, 2 * MIB, i + 1))).toBe(true);
  });
}
