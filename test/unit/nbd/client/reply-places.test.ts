/** Where received data are put: long data straight into the reader's buffer, as the parser asks for it. */
import { describe, expect, test } from "vitest";
import { PendingRequest } from "../../../../src/nbd/client/pending.ts";
import { ReplyParser } from "../../../../src/nbd/client/reply-parser.ts";
import { pattern } from "../../../support/patterns.ts";
import { itSeeded, type Prng } from "../../../support/seed.ts";
import { CMD, cat, dataChunk, extended, simpleReply, structured, u32 } from "./scripted-server.ts";

type Dialect = "simple" | "structured" | "extended";
const KIB = 1024;
const LONG = 64 * KIB;

class Session {
  readonly requests: PendingRequest[] = [];
  completed = 0;
  /** Data bytes that came by the receive buffer, and those that were put in their place. */
  copied = 0;
  placed = 0;
  readonly parser: ReplyParser;

  constructor(dialect: Dialect) {
    const table = {
      find: (high: number, low: number) => (high === 1 ? this.requests[low] : undefined),
      complete: () => void this.completed++,
    };
    this.parser = new ReplyParser(table, dialect);
  }

  /** A stream that reads at most `most` bytes at a time, where the parser wants them. */
  receive(bytes: Uint8Array, most: (limit: number) => number): void {
    const scratch = Buffer.alloc(256 * KIB);
    for (let at = 0; at < bytes.length; ) {
      const wanted = this.parser.wanted;
      const target = wanted ?? scratch;
      const count = Math.min(most(target.length), target.length, bytes.length - at);
      target.set(bytes.subarray(at, at + count));
      this.parser.push(target.subarray(0, count));
      // What is used again must not have been kept.
      if (wanted === undefined) scratch.fill(0xee, 0, count);
      if (wanted === undefined) this.copied += count;
      else if (wanted.length > 40) this.placed += count;
      at += count;
    }
  }

  read(offset: number, length: number): Uint8Array {
    // Its place is in the middle of a larger piece of memory.
    const into = new Uint8Array(length + 200).subarray(100, 100 + length);
    const request = new PendingRequest({ command: CMD.read, flags: 0, offset, length, into }, nothing, nothing);
    this.requests.push(request);
    return into;
  }
}

function nothing(): void {}

/** The reply to the read in `slot`, of one chunk, or of two, the rear one first, cut at `split`. */
function reply(dialect: Dialect, slot: number, data: { offset: number; bytes: Buffer }, split = 0): Buffer {
  const { offset, bytes } = data;
  const cookie = cat(u32(1), u32(slot));
  if (dialect === "simple") return simpleReply(cookie, 0, bytes);
  const chunk = (it: Parameters<typeof structured>[1]): Buffer =>
    dialect === "extended" ? extended(cookie, offset, it) : structured(cookie, it);
  if (split === 0) return chunk(dataChunk(offset, bytes));
  return cat(
    chunk(dataChunk(offset + split, bytes.subarray(split), false)),
    chunk(dataChunk(offset, bytes.subarray(0, split))),
  );
}

describe.each(["simple", "structured", "extended"] as const)("in the %s dialect", (dialect) => {
  itSeeded(`long and short data arrive whole, wherever the stream puts them (${dialect})`, (rng: Prng) => {
    for (let round = 0; round < 20; round++) {
      const session = new Session(dialect);
      const expected: { into: Uint8Array; bytes: Buffer }[] = [];
      const sent: Buffer[] = [];
      for (let slot = 0; slot < 8; slot++) {
        const length = rng.chance(0.5) ? rng.integer(1, LONG - 1) : rng.integer(LONG, 5 * LONG);
        const offset = rng.integer(0, 1 << 20);
        const bytes = pattern(offset, length);
        const split = rng.chance(0.3) && length > 1 ? rng.integer(1, length - 1) : 0;
        expected.push({ into: session.read(offset, length), bytes });
        sent.push(reply(dialect, slot, { offset, bytes }, split));
      }
      session.receive(cat(...sent), (limit) => (rng.chance(0.2) ? rng.integer(1, 30) : rng.integer(1, limit)));
      expect(session.completed).toBe(expected.length);
      for (const { into, bytes } of expected) expect(bytes.equals(into)).toBe(true);
    }
  });

  test("of a run of long replies only the first one's beginning is copied", () => {
    const session = new Session(dialect);
    const intos = Array.from({ length: 10 }, (_, slot) => session.read(slot * 1024 * KIB, 1024 * KIB));
    const replies = intos.map((_, slot) =>
      reply(dialect, slot, { offset: slot * 1024 * KIB, bytes: pattern(slot, 1024 * KIB) }),
    );
    session.receive(cat(...replies), (limit) => limit);
    expect(session.completed).toBe(10);
    expect(intos.every((into, slot) => pattern(slot, 1024 * KIB).equals(into))).toBe(true);
    expect(session.copied).toBeLessThanOrEqual(256 * KIB);
    expect(session.placed).toBeGreaterThan(9 * 1024 * KIB);
  });
});
