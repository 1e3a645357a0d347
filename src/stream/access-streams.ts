/**
 * Tells sequential streams of reads from random ones, several of them at a time. A stream is a run of reads each of which
 * begins about where the one before it ended; reads that overtook each other on their way still count.
 */
const STREAMS_MAX = 16;
/** So many reads in a row, the first included, make a stream. */
const READS_MIN = 3;
/** A read may be off by so many of its lengths: others of its stream came first. */
const SLACK_LENGTHS = 2;
const SLACK_BYTES_MAX = 512 * 1024;
/** A stream without reads for so long is over. */
const IDLE_MS_MAX = 5000;

export interface Stream {
  /** Where the next read is expected. */
  next: number;
  reads: number;
  lastMs: number;
  /** When a read of it last met something missing. */
  faultMs: number;
  /** What was read ahead of it: up to here, by so much at a time. */
  aheadEnd: number;
  windowBytes: number;
  /** Where the stream was when the window last grew. */
  grownAt: number;
}

export class AccessStreams {
  readonly #streams: Stream[] = [];

  /** The stream that the read belongs to, once there is one. */
  note(offset: number, length: number, nowMs: number): Stream | undefined {
    const stream = this.#find(offset, length, nowMs);
    if (stream === undefined) {
      this.#begin(offset + length, nowMs);
      return undefined;
    }
    stream.reads += 1;
    stream.next = Math.max(stream.next, offset + length);
    stream.lastMs = nowMs;
    return stream.reads >= READS_MIN ? stream : undefined;
  }

  /** The stream that has reached these bytes. */
  streamAt(offset: number): Stream | undefined {
    return this.#streams.find(({ next, reads }) => {
      return reads >= READS_MIN && offset < next && next - offset <= SLACK_BYTES_MAX;
    });
  }

  /** Streams that have met something missing since then. */
  *faultingSince(sinceMs: number): Generator<Stream> {
    for (const stream of this.#streams) {
      if (stream.reads >= READS_MIN && stream.faultMs >= sinceMs) yield stream;
    }
  }

  #find(offset: number, length: number, nowMs: number): Stream | undefined {
    const slack = Math.min(SLACK_BYTES_MAX, length * SLACK_LENGTHS);
    for (const stream of this.#streams) {
      if (Math.abs(offset - stream.next) <= slack && nowMs - stream.lastMs <= IDLE_MS_MAX) {
        // The first steps must be exact: random reads of a small disk often are near each other.
        if (stream.reads >= READS_MIN || offset === stream.next) return stream;
      }
    }
    return undefined;
  }

  #begin(next: number, nowMs: number): void {
    const fresh = { next, reads: 1, lastMs: nowMs, faultMs: -Infinity, aheadEnd: 0, windowBytes: 0, grownAt: 0 };
    if (this.#streams.length < STREAMS_MAX) {
      this.#streams.push(fresh);
      return;
    }
    let oldest = 0;
    for (let at = 1; at < this.#streams.length; at++) {
      if (importance(this.#streams[at]) < importance(this.#streams[oldest])) oldest = at;
    }
    this.#streams[oldest] = fresh;
  }
}

/** What has become a stream is not given up for the next random read. */
const STREAM_WORTH_MS = 1000;

function importance(stream: Stream | undefined): number {
  if (stream === undefined) return -Infinity;
  return stream.lastMs + (stream.reads >= READS_MIN ? STREAM_WORTH_MS : 0);
}
