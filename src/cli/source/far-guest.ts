/** The guest's QEMU on the other host, as the source gives it orders: by `dest`, over the link. */
import { MigrationError, messageOf } from "../../migrate/errors.ts";
import type { SourceMigration } from "../../migrate/source.ts";
import { QmpError } from "../../qmp/errors.ts";
import { clip, GuestCaller } from "../../qmp/guest-line.ts";
import type { Log } from "../log.ts";
import { GUEST_TUNNEL } from "../migration/qmp.ts";

export class FarGuest {
  readonly #migration: SourceMigration;
  readonly #log: Log;
  readonly #closing = new AbortController();

  constructor(migration: SourceMigration, log: Log) {
    this.#migration = migration;
    this.#log = log;
  }

  /** Rejects with what the orders are refused with, or `MigrationError("not-connected")`. */
  async order<T>(work: (caller: GuestCaller) => Promise<T>): Promise<T> {
    if (!this.#migration.link.connected) throw new MigrationError("not-connected", "the link is down", "wait for it");
    const caller = new GuestCaller(this.#migration.openTunnel(GUEST_TUNNEL));
    try {
      return await work(caller);
    } finally {
      caller.end();
    }
  }

  /**
   * As `order`, again when the destination was lost, or is another process now, for as long as it has the disks: what is asked
   * for may come twice.
   */
  async insist<T>(work: (caller: GuestCaller) => Promise<T>): Promise<T> {
    for (;;) {
      const { connections } = this.#migration.status().link;
      try {
        return await this.order(work);
      } catch (error) {
        const { link } = this.#migration.status();
        // Refused, and by the process that was asked.
        const refused = link.state === "connected" && link.connections === connections;
        if (refused || !isGiven(this.#migration)) throw error;
        this.#log.warn("the destination is to be asked again", { why: messageOf(error) });
        await this.connected();
      }
    }
  }

  /**
   * A copy of the guest that must not run. Resolves to what has become of it: where nobody can be asked, that is not known;
   * one that runs is kept.
   */
  async abandon(reason: string): Promise<"gone" | "kept" | "unknown"> {
    try {
      await this.order((caller) => caller.ask({ type: "abandon", reason: clip(reason) }, "abandoned"));
      return "gone";
    } catch (error) {
      this.#log.warn("the destination's QEMU could not be told to go", { why: messageOf(error) });
      return error instanceof QmpError && error.code === "state" ? "kept" : "unknown";
    }
  }

  /** Resolves when the link is up, or the disks are not over there any more. Rejects when `close` is called. */
  async connected(): Promise<void> {
    const { promise, resolve, reject } = Promise.withResolvers<void>();
    const look = (): void => {
      if (this.#migration.link.connected || !isGiven(this.#migration)) resolve();
    };
    const { signal } = this.#closing;
    const onAbort = (): void => reject(signal.reason as Error);
    const unsubscribe = this.#migration.onEvent(look);
    signal.addEventListener("abort", onAbort, { once: true });
    try {
      if (signal.aborted) onAbort();
      look();
      await promise;
    } finally {
      unsubscribe();
    }
  }

  close(reason: Error): void {
    this.#closing.abort(reason);
  }
}

export function isGiven({ phase }: Pick<SourceMigration, "phase">): boolean {
  return phase === "granted" || phase === "serving" || phase === "released";
}
