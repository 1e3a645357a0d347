/**
 * A guest, as far as its disks can tell: some workers that read and write, each in its own blocks, and check whatever they
 * read against what was last written. What is on the wire is written out by hand (`raw-client.ts`). It moves from one
 * socket to another as a guest does whose VMM reconnects: what has no answer is asked again there.
 */
import { setImmediate as turn } from "node:timers/promises";
import { CMD } from "../../support/nbd-wire.ts";
import { firstDifference, pattern, type Region } from "../../support/patterns.ts";
import { dialRaw, type RawClient } from "../../support/raw-client.ts";
import type { Prng } from "../../support/seed.ts";

const BLOCK_BYTES = 4096;
const WORKERS = 3;
const BLOCKS_MAX = 8;

export interface GuestOptions {
  readonly disks: readonly string[];
  readonly sizeBytes: number;
  /** What every disk holds at first. */
  readonly regions: readonly Region[];
  readonly rng: Prng;
}

export class LiveGuest implements AsyncDisposable {
  readonly #options: GuestOptions;
  /** By disk: the salt of each block; 0: zeroes. */
  readonly #versions = new Map<string, Uint16Array>();
  readonly #workers: Promise<void>[] = [];
  readonly #clients = new Set<RawClient>();
  #socket: string;
  #moves = 0;
  #stopping = false;
  #paused: { readonly resume: Promise<void>; readonly go: () => void } | undefined;
  #busy = 0;
  #operations = 0;
  #failure: Error | undefined;

  constructor(socket: string, options: GuestOptions) {
    this.#options = options;
    this.#socket = socket;
    for (const disk of options.disks) {
      const versions = new Uint16Array(options.sizeBytes / BLOCK_BYTES);
      for (const { offset, length, salt } of options.regions) {
        versions.fill(salt, offset / BLOCK_BYTES, (offset + length) / BLOCK_BYTES);
      }
      this.#versions.set(disk, versions);
      for (let worker = 0; worker < WORKERS; worker++) this.#workers.push(this.#work(disk, worker));
    }
  }

  get operations(): number {
    return this.#operations;
  }

  /** Resolves when so many more have been done. */
  async more(count: number): Promise<void> {
    const wanted = this.#operations + count;
    while (this.#operations < wanted) {
      if (this.#failure !== undefined) throw this.#failure;
      await new Promise((resolve) => setTimeout(resolve, 2));
    }
  }

  /** As a VMM stops its guest: nothing is under way when it resolves. */
  async pause(): Promise<void> {
    const { promise: resume, resolve: go } = Promise.withResolvers<void>();
    this.#paused = { resume, go };
    while (this.#busy > 0) {
      if (this.#failure !== undefined) throw this.#failure;
      await turn();
    }
  }

  resume(): void {
    this.#paused?.go();
    this.#paused = undefined;
  }

  /** Its disks are there from now on; connections are dropped, and what has no answer is asked again. */
  moveTo(socket: string): void {
    this.#socket = socket;
    this.#moves += 1;
    for (const client of this.#clients) client.reset();
  }

  /** Resolves when it has done what it was at, and nothing was ever wrong. */
  async stop(): Promise<void> {
    this.#stopping = true;
    this.resume();
    await Promise.all(this.#workers);
    if (this.#failure !== undefined) throw this.#failure;
  }

  /** What a disk has to hold now. */
  regionsOf(disk: string): Region[] {
    const versions = this.#versions.get(disk) ?? new Uint16Array();
    return Array.from(versions, (salt, block) => ({ offset: block * BLOCK_BYTES, length: BLOCK_BYTES, salt }));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#stopping = true;
    this.resume();
    this.#failure ??= new Error("the guest was switched off");
    for (const client of this.#clients) client.reset();
    await Promise.allSettled(this.#workers);
  }

  async #work(disk: string, worker: number): Promise<void> {
    let client: RawClient | undefined;
    try {
      while (!this.#stopping) {
        if (this.#paused !== undefined) await this.#paused.resume;
        if (this.#failure !== undefined) return;
        this.#busy += 1;
        try {
          client = await this.#operate(disk, worker, client);
        } finally {
          this.#busy -= 1;
        }
        this.#operations += 1;
      }
      await this.#flush(client);
    } catch (error) {
      this.#failure ??= error as Error;
    } finally {
      client?.end();
    }
  }

  /** One read or write of a few blocks. Returns the connection to go on with. */
  async #operate(disk: string, worker: number, given: RawClient | undefined): Promise<RawClient> {
    const { rng, sizeBytes } = this.#options;
    const versions = this.#versions.get(disk) as Uint16Array;
    // Each worker has every third run of blocks, so that nobody else changes what it checks.
    const runs = sizeBytes / BLOCK_BYTES / BLOCKS_MAX / WORKERS;
    const first = (rng.integer(0, Math.floor(runs) - 1) * WORKERS + worker) * BLOCKS_MAX + rng.integer(0, 3);
    const count = rng.integer(1, BLOCKS_MAX - 4);
    const offset = first * BLOCK_BYTES;
    if (rng.float() < 0.5) {
      const salt = rng.integer(2, 60_000);
      const payload = pattern(offset, count * BLOCK_BYTES, salt);
      const [client] = await this.#insist(disk, given, { command: CMD.WRITE, offset, payload });
      versions.fill(salt, first, first + count);
      return client;
    }
    const expected = Buffer.concat(Array.from({ length: count }, (_, index) => this.#blockOf(versions, first + index)));
    const [client, data] = await this.#insist(disk, given, { command: CMD.READ, offset, length: expected.length });
    const wrong = firstDifference(data, expected);
    if (wrong !== undefined) throw new Error(`${disk} reads wrong at ${offset + wrong.index}: ${wrong.text}`);
    return client;
  }

  #blockOf(versions: Uint16Array, block: number): Buffer {
    const salt = versions[block] ?? 0;
    return salt === 0 ? Buffer.alloc(BLOCK_BYTES) : pattern(block * BLOCK_BYTES, BLOCK_BYTES, salt);
  }

  async #flush(client: RawClient | undefined): Promise<void> {
    if (client !== undefined && !client.ended) await client.call({ command: CMD.FLUSH });
  }

  /** Asks until there is an answer; the answer has to be a good one, unless the disks have moved meanwhile. */
  async #insist(
    disk: string,
    given: RawClient | undefined,
    wanted: { command: number; offset: number; payload?: Buffer; length?: number },
  ): Promise<[RawClient, Buffer]> {
    let client = given;
    for (;;) {
      const moves = this.#moves;
      try {
        client = client === undefined || client.ended ? await this.#connect(disk) : client;
        const { error, chunks } = await client.call(wanted);
        if (error === 0) return [client, chunks[0]?.payload ?? Buffer.alloc(0)];
        if (moves === this.#moves && !(await this.#movedSoon(moves))) {
          throw new GuestSawError(`${disk}: error ${error} for ${wanted.command} at ${wanted.offset}`);
        }
      } catch (failure) {
        if (failure instanceof GuestSawError || this.#failure !== undefined) throw this.#failure ?? failure;
      }
      if (client !== undefined) this.#clients.delete(client);
      client = undefined;
      await new Promise((resolve) => setTimeout(resolve, 10));
    }
  }

  /** A held write fails when the destination's guest has written: then the move is only not told yet. */
  async #movedSoon(moves: number): Promise<boolean> {
    for (let look = 0; look < 50 && moves === this.#moves; look++) {
      await new Promise((resolve) => setTimeout(resolve, 10));
    }
    return moves !== this.#moves;
  }

  async #connect(disk: string): Promise<RawClient> {
    const client = await dialRaw(this.#socket);
    this.#clients.add(client);
    await client.go({ exportName: disk });
    return client;
  }
}

class GuestSawError extends Error {}
