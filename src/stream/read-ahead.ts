/**
 * Fetches ahead of guests that read sequentially. Behind the newest read of each stream a window of bytes is brought,
 * 128 KiB at first and twice as much each time half of it is used, up to twice what the path holds: then the path is full
 * as long as the guest reads fast enough. Random reads bring nothing but what they ask for, and a little around it.
 */
import type { Clock } from "../env/clock.ts";
import { AccessStreams, type Stream } from "./access-streams.ts";
import type { ClusterRange } from "./cluster-range.ts";

const WINDOW_BYTES_START = 128 * 1024;
/** The longest window is twice what the path holds, within these. */
const WINDOW_BYTES_LEAST = 512 * 1024;
const WINDOW_BYTES_MAX = 8 * 1024 * 1024;
/** Of all streams together, fetched and not stored. */
const UNDER_WAY_BYTES_MAX = 16 * 1024 * 1024;
/**
 * What a demand read of nobody's stream brings: within these, and no more than this part of what the path could. More than
 * TCP sends at once after a pause (ten packets) would take a second round trip: 64 KiB were seen to take 98 ms of 50.
 */
const DEMAND_UNIT_BYTES = { min: 4096, max: 8192 };
const DEMAND_PART = 0.02;
/** Hydration leaves so much before a stream to it, for so long after it last met something missing: a fast guest would catch up with less. */
const AVOIDED_BYTES = 256 * 1024 * 1024;
const AVOIDED_MS = 500;

/** What is read ahead. `Overlay` is one. */
export interface ReadAheadTarget {
  readonly sizeBytes: number;
  readonly clusterBytes: number;
  isLocal(offset: number, length: number): boolean;
  /** Brings what is missing of the clusters. A read that comes meanwhile waits for it rather than ask again. */
  fetchAhead(range: ClusterRange): Promise<void>;
}

/** What is known about the path. `WindowControl` knows it. */
export interface PathSize {
  readonly pathBytes: number;
  readonly windowBytes: number;
  readonly unitBytes: number;
}

export interface ReadAheadParts {
  readonly clock: Pick<Clock, "nowMs">;
  readonly target: ReadAheadTarget;
  readonly path: PathSize;
  /** Demand reads under way. */
  readonly demandReads: () => number;
}

export class ReadAhead {
  readonly #parts: ReadAheadParts;
  readonly #streams = new AccessStreams();
  #underWayBytes = 0;
  #fetchedBytes = 0;

  constructor(parts: ReadAheadParts) {
    this.#parts = parts;
  }

  /** Bytes brought ahead of reads so far. */
  get fetchedBytes(): number {
    return this.#fetchedBytes;
  }

  /** To be told of each read, with whether something of it is missing. */
  noteRead(offset: number, length: number, missing: boolean): void {
    const nowMs = this.#parts.clock.nowMs();
    const stream = this.#streams.note(offset, length, nowMs);
    if (stream === undefined) return;
    if (missing) stream.faultMs = nowMs;
    this.#advance(stream);
  }

  /** Bytes that a demand read of [offset, offset + length) brings at once: a power of two. */
  demandUnit(offset: number): number {
    // The rest of its neighbourhood is on its way already.
    if (this.#streams.streamAt(offset) !== undefined) return DEMAND_UNIT_BYTES.min;
    const fair = (DEMAND_PART * this.#parts.path.pathBytes) / (1 + this.#parts.demandReads());
    const { min, max } = DEMAND_UNIT_BYTES;
    let unit: number = max;
    while (unit > min && unit > fair) unit /= 2;
    return unit;
  }

  /** Where a range that hydration would fetch goes on behind the neighbourhood of a stream; undefined: no stream is near. */
  avoid({ first, count }: ClusterRange): number | undefined {
    const { clock, target } = this.#parts;
    const start = first * target.clusterBytes;
    const end = start + count * target.clusterBytes;
    for (const { next, aheadEnd } of this.#streams.faultingSince(clock.nowMs() - AVOIDED_MS)) {
      const stop = Math.min(target.sizeBytes, Math.max(aheadEnd, next) + AVOIDED_BYTES);
      if (start < stop && next < end) return Math.ceil(stop / target.clusterBytes);
    }
    return undefined;
  }

  get #windowMax(): number {
    const { pathBytes, windowBytes } = this.#parts.path;
    // While nobody asks for enough to fill the path, what it delivers says too little.
    return Math.min(WINDOW_BYTES_MAX, Math.max(WINDOW_BYTES_LEAST, 2 * pathBytes, 2 * windowBytes));
  }

  #advance(stream: Stream): void {
    // A stream that went on without us, or back, begins anew.
    const behind = stream.aheadEnd < stream.next;
    const ahead = behind ? 0 : stream.aheadEnd - stream.next;
    // Refilled by units, and grown each time half of it is used.
    if (!behind && stream.windowBytes - ahead < Math.min(this.#parts.path.unitBytes, stream.windowBytes / 2)) return;
    if (behind || stream.grownAt + stream.windowBytes / 2 <= stream.next) {
      const doubled = stream.windowBytes === 0 ? WINDOW_BYTES_START : stream.windowBytes * 2;
      stream.windowBytes = Math.min(this.#windowMax, doubled);
      stream.grownAt = stream.next;
    }
    const { sizeBytes, clusterBytes } = this.#parts.target;
    const start = Math.max(stream.aheadEnd, stream.next);
    const whole = Math.floor((stream.next + stream.windowBytes) / clusterBytes) * clusterBytes;
    const end = Math.min(sizeBytes, whole);
    if (start < end) stream.aheadEnd = this.#fetch(start, end);
  }

  /** Begins to fetch; returns how far. */
  #fetch(start: number, end: number): number {
    const { target, path } = this.#parts;
    const step = Math.max(path.unitBytes, target.clusterBytes);
    let at = start;
    while (at < end && this.#underWayBytes < UNDER_WAY_BYTES_MAX) {
      const stop = Math.min(end, (Math.floor(at / step) + 1) * step);
      if (!target.isLocal(at, stop - at)) this.#fetchPiece(at, stop);
      at = stop;
    }
    return at;
  }

  #fetchPiece(start: number, end: number): void {
    const { clusterBytes } = this.#parts.target;
    const first = Math.floor(start / clusterBytes);
    const count = Math.ceil(end / clusterBytes) - first;
    const bytes = count * clusterBytes;
    this.#underWayBytes += bytes;
    this.#fetchedBytes += bytes;
    const done = (): void => {
      this.#underWayBytes -= bytes;
    };
    // What it could not bring, a read asks for itself, and is told why.
    this.#parts.target.fetchAhead({ first, count }).then(done, done);
  }
}
