/**
 * Makes acknowledged data durable, store before map, one commit at a time, grouped:
 *
 *   seal what is present → sync the store → write the map sectors of durable ∪ sealed → sync the map → acknowledge
 *
 * A commit acknowledges the flushes that were received before its seal; one that comes later waits for the next. When the
 * map already tells of everything that is present, and no commit runs, syncing the store is enough.
 *
 * An error latches, except running out of space: nothing is synced again, and every later write and flush fails.
 */
import { BlockError } from "../block/error.ts";
import type { OverlayStore } from "../block/overlay-store.ts";
import type { Chaos } from "../env/chaos.ts";
import { blockErrorFrom } from "./errors.ts";
import type { IntentLog } from "./intent-log.ts";
import type { MapFile } from "./map-file.ts";
import type { Presence } from "./presence.ts";

export interface CommitParts {
  readonly store: Pick<OverlayStore, "commit">;
  readonly map: MapFile;
  readonly presence: Presence;
  readonly log: IntentLog;
  readonly chaos: Chaos;
}

export class Commit {
  readonly #parts: CommitParts;
  #running: Promise<void> | undefined;
  /** For who asked since the last seal. */
  #next: PromiseWithResolvers<void> | undefined;
  #failure: BlockError | undefined;

  constructor(parts: CommitParts) {
    this.#parts = parts;
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
    const { presence, chaos } = this.#parts;
    const short = this.#running === undefined && presence.settled;
    if (short || chaos.on("cor/flush-shortcut-always")) await this.#syncStore();
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
    if (this.#next === undefined && this.#running === undefined && !this.latched) this.full().catch(() => undefined);
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
    try {
      if (chaos.on("cor/map-before-data")) await this.#writeMap(acknowledge);
      await this.#syncStore();
      if (!sealFirst) this.#seal();
      if (!chaos.on("cor/map-before-data")) await this.#writeMap(acknowledge);
    } catch (error) {
      presence.unseal();
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
  }

  async #writeMap(acknowledge: () => void): Promise<void> {
    const { map, presence, chaos } = this.#parts;
    let written = false;
    try {
      for (const [page, bits] of presence.sealed(chaos.on("cor/live-map"))) {
        if (!written) map.nextGeneration();
        written = true;
        await map.writePage(page, bits);
      }
    } catch (error) {
      throw this.failed(error);
    }
    if (!written) return;
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
