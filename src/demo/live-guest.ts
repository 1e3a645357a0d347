/**
 * A guest at work, as far as its disk can tell: workers that read and write, each in its own blocks, check all they read,
 * and pause a little in between. It moves as a guest does: it stands still, and goes on over there.
 */
import type { Env } from "../env/env.ts";
import type { NbdClient } from "../nbd/client/client.ts";
import { connectNbd } from "../nbd/client/connect.ts";
import { BLOCK_BYTES, type DiskModel } from "./disk-model.ts";
import { DemoFailure } from "./failure.ts";

const WORKERS = 4;
/** Blocks that a worker has to itself, and then the next one. */
const STRIPE_BLOCKS = 16;
const FLUSH_EVERY = 50;
const THINK_MS_MAX = 3;
const WRITE_SHARE = 0.4;

export interface GuestOptions {
  readonly env: Env;
  readonly model: DiskModel;
  readonly exportName: string;
}

export interface GuestCounts {
  readonly reads: number;
  readonly writes: number;
  /** The longest that a worker went without an answer since this was asked last, its own pauses not counted. */
  readonly longestWaitMs: number;
}

export class LiveGuest implements AsyncDisposable {
  readonly #options: GuestOptions;
  readonly #workers: Promise<void>[];
  readonly #clients: (NbdClient | undefined)[] = [];
  #path: string;
  #place = 0;
  #stopping = false;
  #failure: Error | undefined;
  #gate: PromiseWithResolvers<void> | undefined;
  #idle: (() => void) | undefined;
  #busy = 0;
  #reads = 0;
  #writes = 0;
  #longestWaitMs = 0;
  #version = 1;

  /** Begins at once, with the disk behind the unix socket at `path`. */
  constructor(path: string, options: GuestOptions) {
    this.#options = options;
    this.#path = path;
    this.#workers = Array.from({ length: WORKERS }, (_, worker) =>
      this.#work(worker).catch((error: Error) => {
        this.#failure ??= error;
      }),
    );
  }

  /** Takes the longest wait with it. Throws what has gone wrong. */
  counts(): GuestCounts {
    if (this.#failure !== undefined) throw this.#failure;
    const longestWaitMs = this.#longestWaitMs;
    this.#longestWaitMs = 0;
    return { reads: this.#reads, writes: this.#writes, longestWaitMs };
  }

  /** Stands still: nothing is under way when it resolves, and all that was written is flushed. */
  async pause(): Promise<void> {
    this.#gate = Promise.withResolvers<void>();
    if (this.#busy > 0) {
      await new Promise<void>((resolve) => {
        this.#idle = resolve;
      });
    }
    if (this.#failure !== undefined) throw this.#failure;
    await this.#clients[0]?.flush();
  }

  /** Its disk is there from now on. */
  async resumeAt(path: string): Promise<void> {
    this.#path = path;
    this.#place += 1;
    const before = [...this.#clients];
    this.#clients.fill(undefined);
    this.#gate?.resolve();
    this.#gate = undefined;
    await Promise.all(before.map(async (client) => await client?.close().catch(() => undefined)));
  }

  /** Resolves when everything is written, flushed and checked. */
  async stop(): Promise<void> {
    this.#stopping = true;
    await Promise.all(this.#workers);
    if (this.#failure !== undefined) throw this.#failure;
    await this.#clients[0]?.flush();
    await this.#closeAll();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#stopping = true;
    this.#gate?.resolve();
    for (const client of this.#clients) client?.drop("the demo ends");
    await Promise.all(this.#workers);
  }

  async #closeAll(): Promise<void> {
    await Promise.all(this.#clients.map(async (client) => await client?.close()));
  }

  async #work(worker: number): Promise<void> {
    const { clock, random } = this.#options.env;
    while (!this.#stopping && this.#failure === undefined) {
      const wantedMs = clock.nowMs();
      if (this.#gate !== undefined) await this.#gate.promise;
      this.#busy += 1;
      try {
        await this.#operate(worker);
      } finally {
        this.#busy -= 1;
        if (this.#busy === 0) this.#idle?.();
      }
      this.#longestWaitMs = Math.max(this.#longestWaitMs, clock.nowMs() - wantedMs);
      await new Promise<void>((resolve) => clock.setTimer(random.next() * THINK_MS_MAX, resolve));
    }
  }

  async #operate(worker: number): Promise<void> {
    const { env, model } = this.#options;
    const client = this.#clients[worker] ?? (await this.#connect());
    this.#clients[worker] = client;
    const stripes = Math.floor(model.blocks / STRIPE_BLOCKS / WORKERS);
    const stripe = Math.floor(env.random.next() * stripes) * WORKERS + worker;
    const skipped = Math.floor(env.random.next() * STRIPE_BLOCKS);
    const block = stripe * STRIPE_BLOCKS + skipped;
    const count = 1 + Math.floor(env.random.next() * (STRIPE_BLOCKS - skipped));
    if (env.random.next() < WRITE_SHARE) await this.#write(client, block, count);
    else await this.#read(client, block, count);
  }

  async #write(client: NbdClient, block: number, count: number): Promise<void> {
    const { model } = this.#options;
    this.#version += 1;
    const version = this.#version;
    await client.write(block * BLOCK_BYTES, model.content(block, count, version));
    model.versions.fill(version, block, block + count);
    this.#writes += 1;
    if (this.#writes % FLUSH_EVERY === 0) await client.flush();
  }

  async #read(client: NbdClient, block: number, count: number): Promise<void> {
    const found = Buffer.allocUnsafe(count * BLOCK_BYTES);
    await client.read(block * BLOCK_BYTES, found);
    this.#reads += 1;
    if (found.equals(this.#options.model.content(block, count))) return;
    const where = this.#place === 0 ? "source" : "destination";
    throw new DemoFailure(
      `the guest has read something else than it had written`,
      `${count} blocks at byte ${block * BLOCK_BYTES}, from the ${where}`,
      "this is a defect of blockferry; please report it",
    );
  }

  #connect(): Promise<NbdClient> {
    const { env, exportName } = this.#options;
    return connectNbd(env, { address: { kind: "unix", path: this.#path }, exportName });
  }
}
