/** The send half of a channel against a naive one: a string of bytes, of which a part was sent and a part acknowledged. */
import { expect } from "vitest";
import { SendHalf } from "../../../src/link/send-half.ts";
import { BufferPool } from "../../../src/util/buffer-pool.ts";
import { pattern } from "../../support/patterns.ts";
import { counts, itSeeded, type Prng } from "../../support/seed.ts";
import { cut } from "./raw-peer.ts";

const NO_CHAOS = {
  creditCountedTwice: false,
  replayFromWrongOffset: false,
  replayFromCredit: false,
  closeBeforeData: false,
};
const CHANNEL = 7;

/** The naive one keeps everything, for ever. */
class Reference {
  readonly #all: Buffer[] = [];
  written = 0;
  sent = 0;
  consumed = 0;
  limit = 0;

  write(bytes: Buffer): void {
    this.#all.push(Buffer.from(bytes));
    this.written += bytes.length;
  }

  get all(): Buffer {
    return Buffer.concat(this.#all);
  }
}

interface Held {
  readonly release: () => void;
  readonly bytes: Uint8Array;
  readonly copy: Buffer;
}

function sendSome(rng: Prng, half: SendHalf, reference: Reference, held: Held[]): void {
  const run = half.take(rng.pick([1, 100, 65_536]));
  if (run === undefined) {
    // Nothing to send: everything that may be sent has been, but for what waits for acknowledgements.
    const kept = reference.written - half.pendingBytes;
    expect(reference.sent === Math.min(kept, reference.limit) || !half.sendable).toBe(true);
    return;
  }
  const { frames, rest } = cut(Buffer.concat([run.header ?? Buffer.alloc(0), run.bytes]));
  const data = Buffer.concat(frames.map(({ payload }) => payload));
  expect([rest.length, data.length]).toEqual([0, run.dataBytes]);
  expect(frames.every(({ type, channel, flags }) => type === 3 && channel === CHANNEL && flags === 0)).toBe(true);
  expect(data.equals(reference.all.subarray(reference.sent, reference.sent + data.length))).toBe(true);
  reference.sent += data.length;
  expect(reference.sent).toBeLessThanOrEqual(reference.limit);
  // A stream that gives buffers back late, or a lost one that is still to be closed.
  held.push({ release: run.release, bytes: run.bytes, copy: Buffer.from(run.bytes) });
}

function giveBack(held: Held[], index: number): void {
  for (const { release, bytes, copy } of held.splice(index, 1)) {
    // Nobody has touched what the stream was given, though it may be acknowledged, or sent again.
    expect(copy.equals(bytes)).toBe(true);
    release();
  }
}

itSeeded("what a channel sends, and sends again, is what was written, whatever is acknowledged when", (rng) => {
  const rounds = counts({ local: 100, ci: 5000 });
  for (let round = 0; round < rounds; round++) {
    const pool = new BufferPool();
    const capacityBytes = rng.pick([65_536, 200_000]);
    const half = new SendHalf({ channel: CHANNEL, pool, capacityBytes }, NO_CHAOS);
    const reference = new Reference();
    const held: Held[] = [];
    let unreleased = 0;
    const writeMax = rng.pick([3, 300, 100_000]);
    for (let step = 0; step < 200; step++) {
      const what = rng.float();
      if (what < 0.3 && half.pendingBytes < 100_000) {
        const bytes = pattern(reference.written, rng.integer(1, writeMax));
        reference.write(bytes);
        unreleased += 1;
        half.write(bytes, () => {
          unreleased -= 1;
          bytes.fill(0xdd);
        });
      } else if (what < 0.7) sendSome(rng, half, reference, held);
      else if (what < 0.8) giveBack(held, rng.integer(0, 5));
      else if (what < 0.95) {
        reference.consumed = rng.integer(reference.consumed, reference.sent);
        const windowBytes = Math.max(reference.limit - reference.consumed, rng.pick([0, 10, 70_000]));
        reference.limit = Math.max(reference.limit, reference.consumed + windowBytes);
        half.credit({ offset: reference.consumed, windowBytes });
      } else {
        reference.sent = rng.integer(reference.consumed, reference.sent);
        half.resumeAt(reference.sent);
      }
      expect(half.sent).toBe(reference.sent);
      expect(unreleased > 0).toBe(half.pendingBytes > 0);
    }
    for (const release of half.drop()) release();
    while (held.length > 0) giveBack(held, 0);
    expect(unreleased).toBe(0);
  }
});
