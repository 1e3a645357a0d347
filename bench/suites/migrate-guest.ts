/**
 * A guest that writes: one block of 4 KiB after the other on each of its disks, never the same twice, so that each write
 * that was lost is found out at the end; and that moves from one server to another, as a guest does whose VMM moves it.
 */
import { setTimeout as delay } from "node:timers/promises";
import type { NbdProbe } from "../lib/nbd-probe.ts";
import { Pattern } from "../lib/pattern.ts";
import { WRITTEN_BYTES, type Written } from "../lib/verify.ts";

/** Prime: visits each block of a disk of a power of two of them once. */
const STRIDE = 7919;
const RETRY_MS = 1;
const RETRY_FOR_MS = 60_000;

/** One disk's guest. */
export class DiskGuest implements Written {
  readonly pattern = new Pattern("blockferry bench guest");
  readonly offsets = new Set<number>();
  /** When the last write was accepted. */
  acceptedMs = Number.NaN;
  /** The longest that passed from one accepted write to the next, on either side. */
  longestGapMs = 0;
  readonly #blocks: number;
  #next = 1;

  constructor(sizeBytes: number) {
    this.#blocks = sizeBytes / WRITTEN_BYTES;
    if (!Number.isInteger(Math.log2(this.#blocks))) throw new Error("a disk of a power of two of blocks");
  }

  /** Writes, every so often, until it is stopped: the write that is under way is its last. Rejects when a write fails. */
  async writeUntil(stop: AbortSignal, probe: NbdProbe, everyMs: number): Promise<void> {
    while (!stop.aborted) {
      const begunMs = performance.now();
      await this.write(probe);
      const restMs = Math.max(0, everyMs - (performance.now() - begunMs));
      await delay(restMs, undefined, { signal: stop }).catch(() => undefined);
    }
  }

  /** Tries until a write is accepted. Resolves to when the write before it was, wherever that was. */
  async firstWrite(probe: NbdProbe): Promise<number> {
    const deadlineMs = performance.now() + RETRY_FOR_MS;
    for (;;) {
      try {
        return await this.write(probe);
      } catch (error) {
        const refused = (error as Error).message.startsWith("writing ");
        if (!refused || performance.now() > deadlineMs) throw error;
      }
      await delay(RETRY_MS);
    }
  }

  /** Rejects, and does not count it as written, when the server refuses it. Resolves as `firstWrite` does. */
  async write(probe: NbdProbe): Promise<number> {
    if (this.#next >= this.#blocks) throw new Error("the guest has written its whole disk");
    const offset = ((this.#next * STRIDE) % this.#blocks) * WRITTEN_BYTES;
    await probe.write(offset, this.pattern.expected(offset, WRITTEN_BYTES));
    const [beforeMs, nowMs] = [this.acceptedMs, performance.now()];
    if (!Number.isNaN(beforeMs)) this.longestGapMs = Math.max(this.longestGapMs, nowMs - beforeMs);
    this.acceptedMs = nowMs;
    this.offsets.add(offset);
    this.#next += 1;
    return beforeMs;
  }
}
