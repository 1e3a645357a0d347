/**
 * What the source could not give: a bounded list, and totals that count what the list has no room for. Hydration passes
 * over everything that is missing again and again; what a whole pass did not find bad any more is forgotten with it.
 */
import type { BlockErrorCode } from "../block/error.ts";

const RANGES_MAX = 1000;

export interface FailedRange {
  readonly offset: number;
  readonly length: number;
  readonly code: BlockErrorCode;
  /** Passes in which it was asked for in vain. */
  readonly attempts: number;
}

interface Entry extends FailedRange {
  readonly pass: number;
}

interface Overflow {
  count: number;
  bytes: number;
}

export class FailedRanges {
  readonly #entries = new Map<number, Entry>();
  #overflow: Overflow = { count: 0, bytes: 0 };
  #overflowBefore: Overflow = { count: 0, bytes: 0 };
  #pass = 1;

  /** False: a further range would not be listed, so to find out exactly which it is is not worth the requests. */
  get hasRoom(): boolean {
    return this.#entries.size < RANGES_MAX;
  }

  get any(): boolean {
    return this.#entries.size > 0 || this.unlisted > 0;
  }

  /** Ranges that are bad and not in the list. */
  get unlisted(): number {
    return Math.max(this.#overflow.count, this.#overflowBefore.count);
  }

  get totalBytes(): number {
    let total = Math.max(this.#overflow.bytes, this.#overflowBefore.bytes);
    for (const { length } of this.#entries.values()) total += length;
    return total;
  }

  note(offset: number, length: number, code: BlockErrorCode): void {
    const known = this.#entries.get(offset);
    if (known === undefined && !this.hasRoom) {
      this.#overflow.count += 1;
      this.#overflow.bytes += length;
      return;
    }
    this.#entries.set(offset, { offset, length, code, attempts: (known?.attempts ?? 0) + 1, pass: this.#pass });
  }

  /** The bytes [offset, offset + length) have come. */
  cleared(offset: number, length: number): void {
    if (this.#entries.size === 0) return;
    for (const entry of [...this.#entries.values()]) {
      if (entry.offset >= offset && entry.offset + entry.length <= offset + length) this.#entries.delete(entry.offset);
    }
  }

  endPass(): void {
    for (const entry of [...this.#entries.values()]) {
      if (entry.pass < this.#pass) this.#entries.delete(entry.offset);
    }
    this.#pass += 1;
    this.#overflowBefore = this.#overflow;
    this.#overflow = { count: 0, bytes: 0 };
  }

  /** Ascending, at most 1000; neighbours that failed alike are one. */
  list(): FailedRange[] {
    const joined: FailedRange[] = [];
    for (const { offset, length, code, attempts } of [...this.#entries.values()].sort((a, b) => a.offset - b.offset)) {
      const last = joined.at(-1);
      if (last !== undefined && last.offset + last.length === offset && last.code === code) {
        const most = Math.max(last.attempts, attempts);
        joined[joined.length - 1] = { offset: last.offset, length: last.length + length, code, attempts: most };
      } else {
        joined.push({ offset, length, code, attempts });
      }
    }
    return joined;
  }
}
