import { describe, expect, test } from "vitest";
import { BlockError } from "../../../../src/block/error.ts";
import { ConnectionLostError } from "../../../../src/nbd/client/errors.ts";
import { pattern } from "../../../support/patterns.ts";
import { itSeeded } from "../../../support/seed.ts";
import { seeded } from "../../../support/stream-pair.ts";
import { outcomeOf, type Scripted, scripted, settled } from "./scripted-client.ts";
import {
  CMD,
  cat,
  dataChunk,
  doneChunk,
  errorChunk,
  type Request,
  simpleReply,
  structured,
} from "./scripted-server.ts";

const MIB = 1 << 20;
const LARGE = { handshake: { sizeBytes: 1 << 30 } };

async function answerRead({ server }: Scripted, { cookie, offset, length }: Request): Promise<void> {
  server.send(structured(cookie, dataChunk(offset, pattern(offset, length))));
}

describe("requests in flight", () => {
  test("are at most as many as allowed; others wait, and follow in order", async () => {
    const it = await scripted({ open: { inFlightMax: 3 } });
    const reads = Array.from({ length: 10 }, (_, index) => it.client.read(index * 512, new Uint8Array(512)));
    const asked: Request[] = [];
    for (let count = 0; count < 3; count++) asked.push(await it.server.request());
    await settled();
    expect(it.server.unread).toHaveLength(0);
    expect(it.client.inFlight).toBe(3);
    for (let index = 0; index < 10; index++) {
      const next = asked.shift() as Request;
      expect(next.offset).toBe(index * 512);
      await answerRead(it, next);
      if (index < 7) asked.push(await it.server.request());
    }
    await Promise.all(reads);
    expect(it.client.inFlight).toBe(0);
  });

  test("asked for in one turn leave in one write", async () => {
    const it = await scripted();
    let writes = 0;
    const write = it.stream.write.bind(it.stream);
    it.stream.write = (bytes, release) => {
      writes++;
      write(bytes, release);
    };
    const reads = Array.from({ length: 20 }, (_, index) => it.client.read(index * 512, new Uint8Array(512)));
    reads.push(it.client.write(0, pattern(0, 4096)));
    await settled();
    expect(writes).toBe(1);
    expect(it.server.unread).toHaveLength(21 * 28 + 4096);
    it.client.drop("the test is over");
    await Promise.allSettled(reads);
  });

  test("never have a cookie in common", async () => {
    const it = await scripted({ open: { inFlightMax: 4 } });
    const seen = new Set<string>();
    for (let round = 0; round < 50; round++) {
      const reads = Array.from({ length: 4 }, () => it.client.read(0, new Uint8Array(512)));
      const asked: Request[] = [];
      for (const _ of reads) asked.push(await it.server.request());
      for (const request of asked.toReversed()) {
        seen.add(request.cookie.toString("hex"));
        await answerRead(it, request);
      }
      await Promise.all(reads);
    }
    expect(seen.size).toBe(200);
  });

  test("beyond a bounded number of waiting ones are refused, and the others go on", async () => {
    const it = await scripted({ open: { inFlightMax: 1 } });
    const outcomes = Array.from({ length: 16_386 }, () => outcomeOf(it.client.flush()));
    expect(await outcomes.at(-1)).toMatchObject({ code: "no-memory" });
    for (let count = 0; count < 5; count++) it.server.send(simpleReply((await it.server.request()).cookie));
    expect(await Promise.all(outcomes.slice(0, 5))).toEqual(Array.from({ length: 5 }, () => "success"));
    it.client.drop("the test is over");
    expect(await outcomes[5]).toBeInstanceOf(ConnectionLostError);
  });
});

describe("written data", () => {
  test("leaves in pieces of at most 1 MiB, with only so much ahead of the stream", async () => {
    const it = await scripted(LARGE);
    const sizes: number[] = [];
    const write = it.stream.write.bind(it.stream);
    it.stream.write = (bytes, release) => {
      sizes.push(bytes.length);
      write(bytes, release);
    };
    it.stream.stall();
    const bytes = pattern(0, 10 * MIB);
    const writing = it.client.write(0, bytes);
    void it.client.flush().catch(() => {});
    await settled();
    expect(Math.max(...sizes)).toBe(MIB);
    expect(it.stream.pendingBytes).toBeLessThanOrEqual(3 * MIB);
    it.stream.unstall();
    const request = await it.server.request();
    expect(bytes.equals(request.payload)).toBe(true);
    expect((await it.server.request()).command).toBe(CMD.flush);
    it.server.send(simpleReply(request.cookie));
    await writing;
  });

  test("belongs to the connection until the stream has let go of it, though the server has answered", async () => {
    const it = await scripted(LARGE);
    // The last megabyte stays in the stream.
    const held: (() => void)[] = [];
    const write = it.stream.write.bind(it.stream);
    it.stream.write = (bytes, release) => write(bytes, () => void held.push(release ?? (() => {})));
    const bytes = pattern(0, 2 * MIB);
    let over = false;
    const writing = it.client.write(0, bytes).finally(() => {
      over = true;
    });
    const { cookie } = await it.server.request();
    it.server.send(simpleReply(cookie));
    await settled();
    expect(over).toBe(false);
    for (const release of held) release();
    await writing;
  });

  test("is sent to its end when the server refuses it early", async () => {
    const it = await scripted(LARGE);
    it.stream.stall();
    const writing = outcomeOf(it.client.write(0, pattern(0, 8 * MIB)));
    await settled();
    it.stream.unstall();
    const head = await it.server.read(28);
    it.stream.stall();
    it.server.send(structured(head.subarray(8, 16), errorChunk(28, "full")));
    await settled();
    const flushing = it.client.flush();
    it.stream.unstall();
    expect(pattern(0, 8 * MIB).equals(await it.server.read(8 * MIB))).toBe(true);
    expect(await writing).toMatchObject({ code: "no-space" });
    it.server.send(simpleReply((await it.server.request()).cookie));
    await flushing;
  });

  itSeeded("of any size arrives as it was, mixed with other requests", async (rng) => {
    const it = await scripted({ ...LARGE, pair: { serverCut: seeded(rng) } });
    const writes = Array.from({ length: 20 }, (_, index) => ({ offset: index * MIB, length: rng.integer(1, 40_000) }));
    const all = writes.flatMap(({ offset, length }) => [
      it.client.write(offset, pattern(offset, length)),
      it.client.flush(),
    ]);
    for (let count = 0; count < all.length; count++) {
      const request = await it.server.request();
      if (request.command === CMD.write) {
        expect(pattern(request.offset, request.length).equals(request.payload)).toBe(true);
      }
      it.server.send(simpleReply(request.cookie));
    }
    await Promise.all(all);
  });
});

describe("a lost link", () => {
  test("fails what is in flight and what waits, as lost, and is told once", async () => {
    const it = await scripted({ open: { inFlightMax: 2 } });
    const lost: ConnectionLostError[] = [];
    it.client.onLost((error) => lost.push(error));
    const unsubscribe = it.client.onLost(() => expect.unreachable());
    unsubscribe();
    const outcomes = Array.from({ length: 5 }, () => outcomeOf(it.client.read(0, new Uint8Array(512))));
    await it.server.request();
    it.server.stream.breakAfter(it.server.stream.deliveredBytes);
    for (const error of await Promise.all(outcomes)) {
      expect(error).toBeInstanceOf(ConnectionLostError);
      expect(error).toMatchObject({ code: "io", cause: { message: "connection reset" } });
    }
    expect(lost).toHaveLength(1);
    expect(it.client.state).toBe("dead");
    const late: ConnectionLostError[] = [];
    it.client.onLost((error) => late.push(error));
    await settled();
    expect(late).toHaveLength(1);
    expect(lost).toHaveLength(1);
    expect(await outcomeOf(it.client.flush())).toBeInstanceOf(ConnectionLostError);
    await it.client.close();
    expect(it.client.state).toBe("dead");
  });

  test("at whatever byte of the reply it breaks, nothing is reported as done that is not", async () => {
    const probe = await scripted();
    const before = probe.server.stream.deliveredBytes;
    const whole = 20 + 8 + 600;
    for (let at = 0; at <= whole; at++) {
      const it = await scripted();
      const into = new Uint8Array(600);
      const outcome = outcomeOf(it.client.read(4096, into));
      const { cookie } = await it.server.request();
      it.server.stream.breakAfter(before + at);
      it.server.send(structured(cookie, dataChunk(4096, pattern(4096, 600))));
      if (at < whole) {
        expect(await outcome).toBeInstanceOf(ConnectionLostError);
      } else {
        expect(await outcome).toBe("success");
        expect(pattern(4096, 600).equals(into)).toBe(true);
      }
    }
  });

  test("is what a server that simply closes amounts to", async () => {
    for (const end of ["end", "destroy"] as const) {
      const it = await scripted();
      const reading = outcomeOf(it.client.read(0, new Uint8Array(512)));
      await it.server.request();
      it.server.stream[end]();
      expect(await reading).toBeInstanceOf(ConnectionLostError);
      expect(it.client.state).toBe("dead");
    }
  });

  test("in the middle of a write gives the buffer back", async () => {
    const it = await scripted(LARGE);
    it.stream.stall();
    const writing = outcomeOf(it.client.write(0, pattern(0, 8 * MIB)));
    const waiting = outcomeOf(it.client.write(16 * MIB, pattern(0, MIB)));
    await settled();
    it.client.drop("enough");
    expect(await writing).toBeInstanceOf(ConnectionLostError);
    expect((await waiting) as Error).toMatchObject({ message: expect.stringContaining("enough") });
    expect(it.stream.pendingBytes).toBe(0);
  });

  test("after the reply to a write does not turn its success into a failure", async () => {
    const it = await scripted(LARGE);
    const held: (() => void)[] = [];
    const write = it.stream.write.bind(it.stream);
    it.stream.write = (bytes, release) => write(bytes, () => void held.push(release ?? (() => {})));
    const writing = outcomeOf(it.client.write(0, pattern(0, MIB)));
    it.server.send(simpleReply((await it.server.request()).cookie));
    await settled();
    it.server.stream.destroy();
    expect(await writing).toBe("success");
  });
});

describe("closing", () => {
  test("finishes what was asked for, says goodbye, and waits for the server", async () => {
    const it = await scripted({ open: { inFlightMax: 1 } });
    const reads = [0, 512].map((offset) => it.client.read(offset, new Uint8Array(512)));
    const closing = it.client.close();
    expect(await outcomeOf(it.client.flush())).toMatchObject({ code: "shutting-down" });
    for (const _ of reads) await answerRead(it, await it.server.request());
    await Promise.all(reads);
    const goodbye = await it.server.request();
    expect(goodbye).toMatchObject({ command: CMD.disc, flags: 0, offset: 0, length: 0 });
    await settled();
    expect(it.client.state).toBe("disconnecting");
    it.server.stream.end();
    await closing;
    expect(it.client.state).toBe("closed");
    await it.client.close();
    expect(it.server.unread).toHaveLength(0);
    expect(it.clock.timers).toBe(0);
  });

  test("waits for all requests that an operation consists of", async () => {
    const it = await scripted({ handshake: { flags: 0x1 | 0x4 } });
    const writing = outcomeOf(it.client.write(0, pattern(0, 512), { fua: true }));
    const closing = it.client.close();
    it.server.send(simpleReply((await it.server.request()).cookie));
    const flush = await it.server.request();
    expect(flush.command).toBe(CMD.flush);
    it.server.send(simpleReply(flush.cookie));
    expect(await writing).toBe("success");
    expect((await it.server.request()).command).toBe(CMD.disc);
    it.server.stream.end();
    await closing;
  });

  test("is not held up for ever by a server that does not close", async () => {
    const it = await scripted();
    const closing = it.client.close();
    expect((await it.server.request()).command).toBe(CMD.disc);
    it.clock.advance(5000);
    await closing;
    expect(it.client.state).toBe("closed");
  });

  test("is no loss, even when the server resets the connection after the goodbye", async () => {
    const it = await scripted();
    it.client.onLost(() => expect.unreachable());
    const closing = it.client.close();
    expect((await it.server.request()).command).toBe(CMD.disc);
    it.server.stream.breakAfter(0);
    await closing;
    expect(it.client.state).toBe("closed");
    await settled();
  });

  test("while requests are still out, a server that hangs up is a loss", async () => {
    const it = await scripted();
    const reading = outcomeOf(it.client.read(0, new Uint8Array(512)));
    const closing = it.client.close();
    await it.server.request();
    it.server.stream.destroy();
    expect(await reading).toBeInstanceOf(ConnectionLostError);
    await closing;
    expect(it.client.state).toBe("dead");
  });

  test("by `await using` is an end in order", async () => {
    const it = await scripted();
    const over = (async () => {
      await using client = it.client;
      expect(client.state).toBe("open");
    })();
    expect((await it.server.request()).command).toBe(CMD.disc);
    it.server.stream.end();
    await over;
    expect(it.client.state).toBe("closed");
  });
});

describe("a server that shuts down", () => {
  test("is left politely, after what is in flight has been answered", async () => {
    const it = await scripted({ open: { inFlightMax: 2 } });
    const lost: ConnectionLostError[] = [];
    it.client.onLost((error) => lost.push(error));
    const [first, second, third] = [0, 512, 1024].map((at) => outcomeOf(it.client.read(at, new Uint8Array(512))));
    const [one, two] = [await it.server.request(), await it.server.request()];
    it.server.send(structured(one.cookie, errorChunk(108)));
    expect(await first).toMatchObject({ code: "shutting-down" });
    expect(await third).toBeInstanceOf(ConnectionLostError);
    expect(await outcomeOf(it.client.flush())).toBeInstanceOf(ConnectionLostError);
    await answerRead(it, two);
    expect(await second).toBe("success");
    expect((await it.server.request()).command).toBe(CMD.disc);
    expect(lost).toMatchObject([{ cause: expect.any(BlockError) }]);
    expect(it.client.state).toBe("dead");
    it.server.stream.end();
    await settled();
    expect(it.clock.timers).toBe(0);
    await it.client.close();
  });
});

describe("a silent server", () => {
  test("counts as lost after the time allowed, if there is one", async () => {
    const it = await scripted({ open: { stallTimeoutMs: 15_000 } });
    expect(it.clock.timers).toBe(0);
    const reading = outcomeOf(it.client.read(0, new Uint8Array(4096)));
    const { cookie } = await it.server.request();
    it.clock.advance(14_999);
    const reply = structured(cookie, dataChunk(0, pattern(0, 4096)));
    it.server.send(reply.subarray(0, 100));
    await settled();
    // Whatever moves counts.
    it.clock.advance(14_999);
    expect(it.client.state).toBe("open");
    it.clock.advance(1);
    expect(await reading).toMatchObject({ message: expect.stringContaining("silent for 15000 ms") });
    await settled();
    expect(it.clock.timers).toBe(0);
    expect(it.stream.closed).toBe(true);
  });

  test("is no loss while nothing is expected of it", async () => {
    const it = await scripted({ open: { stallTimeoutMs: 1000 } });
    for (let round = 0; round < 3; round++) {
      const flushing = it.client.flush();
      it.server.send(structured((await it.server.request()).cookie, doneChunk));
      await flushing;
      it.clock.advance(1_000_000);
    }
    expect(it.client.state).toBe("open");
  });

  test("without a time allowed may take as long as it likes", async () => {
    const it = await scripted();
    const flushing = it.client.flush();
    const { cookie } = await it.server.request();
    it.clock.advance(1e9);
    it.server.send(cat(structured(cookie, doneChunk)));
    await flushing;
  });
});
