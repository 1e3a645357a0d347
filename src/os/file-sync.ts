/**
 * fdatasync, one at a time: callers that come while one runs share the next, which begins after they called.
 *
 * After one failure the file never syncs again: the kernel reports a lost page once, drops it, and would call the next
 * fdatasync a success.
 */
import { fdatasync } from "node:fs";
import { fileError } from "./file-error.ts";
import type { FileWriteback } from "./file-writeback.ts";

export interface DataSyncOptions {
  readonly fd: number;
  readonly path: string;
  readonly writeback: Pick<FileWriteback, "syncStarts">;
  readonly sync?: (fd: number, done: (error: Error | null) => void) => void;
}

export class DataSync {
  readonly #fd: number;
  readonly #path: string;
  readonly #writeback: DataSyncOptions["writeback"];
  readonly #sync: NonNullable<DataSyncOptions["sync"]>;
  #running: Promise<void> | undefined;
  #next: Promise<void> | undefined;
  #failure: Error | undefined;

  constructor({ fd, path, writeback, sync = fdatasync }: DataSyncOptions) {
    this.#fd = fd;
    this.#path = path;
    this.#writeback = writeback;
    this.#sync = sync;
  }

  run(): Promise<void> {
    if (this.#failure) return Promise.reject(this.#failure);
    if (!this.#running) return this.#start();
    this.#next ??= this.#running.then(() => {
      this.#next = undefined;
      // One may have begun just now: after all of these callers came.
      return this.#running ?? this.#start();
    });
    return this.#next;
  }

  #start(): Promise<void> {
    const ended = this.#writeback.syncStarts();
    this.#running = new Promise((resolve, reject) => {
      this.#sync(this.#fd, (error) => {
        this.#running = undefined;
        ended(error === null);
        if (error) this.#failure = fileError(`cannot make ${this.#path} durable`, error);
        if (this.#failure) reject(this.#failure);
        else resolve();
      });
    });
    return this.#running;
  }
}
