/**
 * The source of demand reads, watched: how long they take, and whether one of them takes longer than the path alone
 * explains, which is when the background has to give way.
 */
import type { Clock } from "../env/clock.ts";
import { MinRtt } from "./path-model.ts";
import type { Pressure } from "./pressure.ts";
import { type StreamSource, WrappedSource } from "./wrapped-source.ts";

/** More than the shortest time that a read took lately, or that the path takes, and it is late. */
const ALLOWED_MS = 8;
/** Of two such periods the shortest time counts. */
const PERIOD_MS = 1000;

/** What is known about the path. `WindowControl` knows it. */
export interface PathKnowledge {
  readonly minRttMs: number | undefined;
  readonly bytesPerMs: number;
}

interface UnderWay {
  readonly bytes: number;
  readonly dueMs: number;
}

export class DemandSource extends WrappedSource implements Pressure {
  readonly #clock: Clock;
  /** In the order in which they were sent. */
  readonly #underWay = new Set<UnderWay>();
  readonly #shortest = new MinRtt();
  #turnMs: number;
  #bytesUnderWay = 0;
  #path: PathKnowledge = { minRttMs: undefined, bytesPerMs: 0 };

  constructor(source: StreamSource, clock: Clock) {
    super(source);
    this.#clock = clock;
    this.#turnMs = clock.nowMs();
  }

  /** Whoever knows the path, once there is one. */
  learnFrom(path: PathKnowledge): void {
    this.#path = path;
  }

  /** Reads sent and not answered. */
  get underWay(): number {
    return this.#underWay.size;
  }

  isLate(nowMs: number): boolean {
    if (this.source.state !== "connected") return false;
    for (const oldest of this.#underWay) return nowMs > oldest.dueMs;
    return false;
  }

  async read(offset: number, into: Uint8Array): Promise<void> {
    const sentMs = this.#clock.nowMs();
    this.#bytesUnderWay += into.length;
    const one = { bytes: into.length, dueMs: this.#dueMs(sentMs) };
    this.#underWay.add(one);
    try {
      await this.source.read(offset, into);
      this.#learn(sentMs);
    } finally {
      this.#underWay.delete(one);
      this.#bytesUnderWay -= one.bytes;
    }
  }

  /** Demand reads that are under way share the path too. */
  #dueMs(nowMs: number): number {
    const usual = Math.max(this.#path.minRttMs ?? 0, Number.isFinite(this.#shortest.ms) ? this.#shortest.ms : 0);
    if (usual === 0) return Infinity;
    const rate = this.#path.bytesPerMs;
    return nowMs + usual + ALLOWED_MS + (rate > 0 ? this.#bytesUnderWay / rate : 0);
  }

  #learn(sentMs: number): void {
    const nowMs = this.#clock.nowMs();
    if (nowMs - this.#turnMs >= PERIOD_MS) {
      this.#turnMs = nowMs;
      this.#shortest.turn();
    }
    this.#shortest.add(nowMs - sentMs);
  }
}
