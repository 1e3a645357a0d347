/**
 * What was fetched and is not durable yet, kept small: a guest's flush must not wait for gigabytes of ours, and what is
 * not durable when the process ends has to be fetched again. So there is a commit when it is more than the disk was seen
 * to sync in 200 ms, or half a second after it began to gather.
 */
import type { Clock, Timer } from "../env/clock.ts";

const MiB = 2 ** 20;
const LIMIT_FIRST_BYTES = 16 * MiB;
const LIMIT_MIN_BYTES = 4 * MiB;
const LIMIT_MAX_BYTES = 64 * MiB;
const SYNC_TIME_MS = 200;
/** Half of what a restart may have to fetch again at most: the commit itself takes time as well. */
const AGE_MAX_MS = 500;
/** A sync of less says little about the disk. */
const MEASURED_BYTES_MIN = MiB;

export class Unsynced {
  limitBytes = LIMIT_FIRST_BYTES;
  readonly #clock: Clock;
  readonly #commit: () => void;
  #bytes = 0;
  #sealedBytes = 0;
  #waits = false;
  #sealedWaits = false;
  #timer: Timer | undefined;
  #closed = false;

  /** `commit` begins one, and does not throw. */
  constructor(clock: Clock, commit: () => void) {
    this.#clock = clock;
    this.#commit = commit;
  }

  /** So much has gathered that a commit should come before more. */
  get full(): boolean {
    return this.#bytes >= this.limitBytes;
  }

  /** `bytes` were put into the store: 0 for what costs nothing to sync, like a hole. */
  added(bytes: number): void {
    this.#bytes += bytes;
    this.#waits = true;
    this.#arm();
  }

  /** A commit seals: it covers all there is. Returns when that was, for `synced`. */
  sealed(): number {
    this.#sealedBytes = this.#bytes;
    this.#bytes = 0;
    this.#sealedWaits = this.#waits;
    this.#waits = false;
    this.#disarm();
    return this.#clock.nowMs();
  }

  /** The store has been synced. */
  synced(sealedAtMs: number): void {
    const bytes = this.#sealedBytes;
    this.#sealedBytes = 0;
    if (bytes < MEASURED_BYTES_MIN) return;
    const bytesInTime = (bytes / Math.max(this.#clock.nowMs() - sealedAtMs, 1)) * SYNC_TIME_MS;
    const average = (this.limitBytes + bytesInTime) / 2;
    this.limitBytes = Math.min(Math.max(average, LIMIT_MIN_BYTES), LIMIT_MAX_BYTES);
  }

  /** The commit did not come about. With `again`, another may. */
  failed(again: boolean): void {
    this.#bytes += this.#sealedBytes;
    this.#sealedBytes = 0;
    this.#waits ||= this.#sealedWaits;
    if (again) this.#arm();
    else this.close();
  }

  /** No commit begins by itself any more. */
  close(): void {
    this.#closed = true;
    this.#disarm();
  }

  #arm(): void {
    if (this.#closed || !this.#waits) return;
    this.#timer ??= this.#clock.setTimer(AGE_MAX_MS, () => {
      this.#timer = undefined;
      this.#commit();
    });
  }

  #disarm(): void {
    this.#timer?.cancel();
    this.#timer = undefined;
  }
}
