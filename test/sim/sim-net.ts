/** The network between simulated hosts: who listens where, and every connection that is open. */
import { FileError } from "../../src/env/files.ts";
import { type Address, type ByteStream, formatAddress, type Links } from "../../src/env/links.ts";
import type { Prng } from "../support/seed.ts";
import type { Scheduler } from "./scheduler.ts";
import type { SimProcess } from "./sim-process.ts";
import { type LineQuality, SimStream } from "./sim-stream.ts";

export interface SimConnection {
  readonly address: string;
  /** The end that dialled. */
  readonly near: SimStream;
  /** The end that was listened for. */
  readonly far: SimStream;
}

interface Listening {
  readonly process: SimProcess;
  readonly onStream: (stream: ByteStream) => void;
}

export function drawQuality(rng: Prng): LineQuality {
  return {
    latencyMs: rng.pick([0.02, 0.5, 25]),
    bytesPerMs: rng.pick([1e4, 1e5, 1e6]),
    windowBytes: rng.pick([3000, 65_536, 1 << 20]),
    shortPieces: rng.pick([0, 0.05, 0.5]),
  };
}

export class SimNet {
  readonly #scheduler: Scheduler;
  readonly #rng: Prng;
  readonly #listening = new Map<string, Listening>();
  readonly #connections = new Set<SimConnection>();
  quality: LineQuality;
  /** Told of each new connection before either end is used: the place to order cuts and partitions. */
  onConnection: (connection: SimConnection) => void = () => {};

  constructor(scheduler: Scheduler, rng: Prng) {
    this.#scheduler = scheduler;
    this.#rng = rng;
    this.quality = drawQuality(rng);
  }

  /** Connections of which one end at least is open. */
  get connections(): readonly SimConnection[] {
    return [...this.#connections];
  }

  /** `onStream` gets what is dialled at `address`, until the process dies or the function returned is called. */
  listen(process: SimProcess, address: Address, onStream: (stream: ByteStream) => void): () => void {
    const key = formatAddress(address);
    if (this.#listening.has(key)) throw new FileError("EADDRINUSE", `${key} is taken`);
    const listening = { process, onStream };
    this.#listening.set(key, listening);
    const close = (): void => {
      if (this.#listening.get(key) === listening) this.#listening.delete(key);
    };
    process.onDeath(close);
    return close;
  }

  dial(process: SimProcess, address: Address, signal?: AbortSignal): Promise<ByteStream> {
    return new Promise((resolve, reject) => {
      const answer = this.#scheduler.after(this.quality.latencyMs * 2, "dial", () => {
        signal?.removeEventListener("abort", onAbort);
        if (!process.alive) return;
        const listening = this.#listening.get(formatAddress(address));
        if (listening === undefined)
          reject(new FileError("ECONNREFUSED", `nobody listens at ${formatAddress(address)}`));
        else resolve(this.#connect(process, listening, formatAddress(address)));
      });
      const onAbort = (): void => {
        answer.cancel();
        reject(new FileError("ECONNABORTED", "the attempt was given up"));
      };
      if (signal?.aborted === true) onAbort();
      else signal?.addEventListener("abort", onAbort, { once: true });
    });
  }

  #connect(process: SimProcess, listening: Listening, address: string): SimStream {
    const onGone = (): void => {
      if (near.closed && far.closed) this.#connections.delete(connection);
    };
    const common = { scheduler: this.#scheduler, rng: this.#rng, quality: this.quality, onGone };
    const near = new SimStream({ ...common, process, peer: address });
    const far = new SimStream({ ...common, process: listening.process, peer: process.name });
    near.join(far);
    far.join(near);
    const connection = { address, near, far };
    this.#connections.add(connection);
    this.onConnection(connection);
    listening.onStream(far);
    return near;
  }
}

/** The network as one process sees it. */
export class SimLinks implements Links {
  readonly #net: SimNet;
  readonly #process: SimProcess;

  constructor(net: SimNet, process: SimProcess) {
    this.#net = net;
    this.#process = process;
  }

  dial(address: Address, signal?: AbortSignal): Promise<ByteStream> {
    return this.#net.dial(this.#process, address, signal);
  }

  /** Not part of `Links`: sockets are listened on by the command line, here by tests. */
  listen(address: Address, onStream: (stream: ByteStream) => void): () => void {
    return this.#net.listen(this.#process, address, onStream);
  }
}
