/**
 * Makes acknowledged data durable, store before map, one commit at a time, grouped:
 *
 *   seal what is present → sync the store → write the map sectors of durable ∪ sealed → sync the map → acknowledge
 *
 * A commit acknowledges the flushes that were received before its seal; one that comes later waits for the next. When the
 * intent log has nothing that is not durable, all guest writes are in clusters that the map tells of, and syncing the store
 * is enough.
 *
 * An error latches, except running out of space: nothing is synced again, and every later write and flush fails.
 */
import { BlockError } from "../block/error.ts";
import type { OverlayStore } from "../block/overlay-store.ts";
import type { Chaos } from "../env/chaos.ts";
import type { Clock } from "../env/clock.ts";
import { blockErrorFrom } from "./errors.ts";
import type { IntentLog } from "./intent-log.ts";
import type { MapFile } from "./map-file.ts";
import type { Presence } from "./presence.ts";
import { Unsynced } from "./unsynced.ts";

export interface CommitParts {
  readonly store: Pick<OverlayStore, "commit">;
  readonly map: MapFile;
  readonly presence: Presence;
  readonly log: IntentLog;
  readonly clock: Clock;
  readonly chaos: Chaos;
}

export class Commit {
  /** What was fetched since the last seal. */
  readonly unsynced: Unsynced;
  readonly #parts: CommitParts;
  #running: Promise<void> | undefined;
  /** For who asked since the last seal. */
  #next: PromiseWithResolvers<void> | undefined;
  #failure: BlockError | undefined;

  constructor(parts: CommitParts) {
    this.#parts = parts;
    this.unsynced = new Unsynced(parts.clock, () => this.kick());
  }

  get latched(): boolean {
    return this.#failure !== undefined;
  }

  /** Throws `BlockError("io")` once latched. To be called before every write. */
  check(): void {
    if (this.#failure === undefined) return;
    const message = `the overlay takes no more writes since data was lost: ${this.#failure.message}`;
    throw new BlockError("io", message, { cause: this.#failure });
  }

  /** Latches if `error` is an I/O error. Returns what the caller is to throw. */
  failed(error: unknown): unknown {
    const mapped = blockErrorFrom(error);
    if (mapped instanceof BlockError && mapped.code === "io") this.#latch(mapped);
    return mapped;
  }

  /** Makes durable every write that had completed before the call. */
  async flush(): Promise<void> {
    this.check();
    const { log, chaos } = this.#parts;
    // Everything that a guest wrote lies in clusters that are durable: its data are all that a flush has to see to. What was
    // fetched meanwhile is nobody's loss, and gets a commit in its own time.
    if (log.settledAll || chaos.on("cor/flush-shortcut-always")) await this.#syncStore();
    else await this.full();
    this.check();
  }

  /** A whole commit, which seals after this call. */
  full(): Promise<void> {
    this.#next ??= Promise.withResolvers();
    const { promise } = this.#next;
    if (this.#running === undefined) this.#start();
    return promise;
  }

  /** Begins a commit that nobody waits for, unless one waits to begin already. A failure shows at the next flush. */
  kick(): void {
    if (this.#next === undefined && !this.latched) this.full().catch(() => undefined);
  }

  /** Resolves when no commit is under way. */
  async drain(): Promise<void> {
    while (this.#running !== undefined) await this.#running;
  }

  #start(): void {
    const waiters = this.#next;
    this.#next = undefined;
    const run = this.#run(() => waiters?.resolve()).catch((error: unknown) => {
      waiters?.reject(error);
    });
    this.#running = run.then(() => {
      this.#running = undefined;
      if (this.#next !== undefined) this.#start();
    });
  }

  async #run(acknowledge: () => void): Promise<void> {
    const { presence, log, map, chaos } = this.#parts;
    this.check();
    const sealFirst = !chaos.on("cor/seal-after-barrier");
    if (sealFirst) this.#seal();
    const sealedAtMs = this.unsynced.sealed();
    try {
      if (chaos.on("cor/map-before-data")) await this.#writeMap(acknowledge);
      await this.#syncStore();
      this.unsynced.synced(sealedAtMs);
      if (!sealFirst) this.#seal();
      if (!chaos.on("cor/map-before-data")) await this.#writeMap(acknowledge);
    } catch (error) {
      presence.unseal();
      this.unsynced.failed(!this.latched);
      throw error;
    }
    for (const [page] of presence.sealed(false)) map.settle(page);
    presence.settle();
    log.settled();
    acknowledge();
  }

  #seal(): void {
    this.#parts.presence.seal();
    this.#parts.log.sealed();
  }

  async #syncStore(): Promise<void> {
    try {
      await this.#parts.store.commit();
    } catch (error) {
      throw this.failed(error);
    }
    // Another sync may have failed meanwhile, and have been told of what this one lost.
    this.check();
  }

  async #writeMap(acknowledge: () => void): Promise<void> {
    const { map, presence, chaos } = this.#parts;
    try {
      if (!(await map.writePages(presence.sealed(chaos.on("cor/live-map"))))) return;
    } catch (error) {
      throw this.failed(error);
    }
    if (chaos.on("cor/ack-before-map-sync")) acknowledge();
    try {
      await map.sync();
    } catch (error) {
      // Whatever its code: what it should have made durable may be gone.
      const mapped = blockErrorFrom(error);
      if (mapped instanceof BlockError) this.#latch(new BlockError("io", mapped.message, { cause: error }));
      throw this.#failure ?? mapped;
    }
  }

  #latch(failure: BlockError): void {
    if (this.#parts.chaos.on("cor/retry-sync")) return;
    this.#failure ??= failure;
    this.#parts.log.destroy();
  }
}
