/**
 * Histories of a link: channels in both directions carry bytes that are checked one by one, while connections are cut,
 * lines go dead in one direction or both, and processes are started anew. In the end everything is healed; then every
 * channel that no restart has touched has carried all of its bytes, once.
 */
import type { Channel } from "../../src/link/channel.ts";
import type { LinkChaosPoint } from "../../src/link/chaos-points.ts";
import { LinkError } from "../../src/link/errors.ts";
import { CHANNEL_KINDS } from "../../src/link/limits.ts";
import { Prng } from "../support/seed.ts";
import { LinkOracleError, Talker, type TalkParts } from "./link-talker.ts";
import { LinkWorld } from "./link-world.ts";
import type { SimConnection } from "./sim-net.ts";

export interface LinkHistoryOptions {
  readonly mutants?: readonly LinkChaosPoint[];
  /** Cuts the first connection after so many bytes from the dialling, or from the listening end. */
  readonly cut?: { readonly near?: number; readonly far?: number };
  /** Nothing but `cut` goes wrong. */
  readonly quiet?: boolean;
}

export interface LinkHistoryResult {
  readonly trace: string;
  readonly connections: number;
  readonly cuts: number;
  readonly restarts: number;
  readonly bytes: number;
}

const FAULT_MS = 4000;
/** More than is cut within. */
const QUIET_BYTES = 4200;
const FINISH_MS = 600_000;

export async function linkHistory(seed: number, options: LinkHistoryOptions = {}): Promise<LinkHistoryResult> {
  const history = new History(seed, options);
  await history.run();
  return history.result();
}

interface Conversation {
  readonly opener: "source" | "dest";
  readonly bytes: readonly [number, number];
  readonly salt: number;
  readonly talkers: Talker[];
  touchedByRestart: boolean;
}

class History {
  readonly #at: LinkWorld;
  readonly #options: LinkHistoryOptions;
  readonly #conversations: Conversation[] = [];
  readonly #windowBytes = { message: 0, demand: 0, tunnel: 0, background: 0 };
  #cuts = 0;
  #restarts = 0;
  #first = true;
  #faults = true;
  #destConnections = 0;

  constructor(seed: number, options: LinkHistoryOptions) {
    const draw = new Prng(seed, "windows");
    const windowBytes = this.#windowBytes;
    for (const kind of CHANNEL_KINDS) windowBytes[kind] = draw.pick([100, 3000, 65_536, 1 << 20]);
    this.#at = new LinkWorld(seed, {
      ...options,
      limits: { windowBytes, sendAheadBytes: draw.pick([1, 4096, 131_072]) },
    });
    this.#options = options;
  }

  result(): LinkHistoryResult {
    const bytes = this.#conversations.reduce(
      (sum, { talkers }) => sum + talkers.reduce((s, t) => s + t.received, 0),
      0,
    );
    const { scheduler } = this.#at.world;
    const connections = this.#destConnections + this.#at.dest.link.status().connections;
    return { trace: scheduler.traceHash, connections, cuts: this.#cuts, restarts: this.#restarts, bytes };
  }

  async run(): Promise<void> {
    const { net, rng, scheduler } = this.#at.world;
    net.onConnection = (connection) => this.#spoil(connection);
    this.#at.onChannel = (side, channel) => this.#join(side, channel);
    this.#at.startSource();
    this.#at.startDest();
    const count = this.#options.quiet === true ? 1 : rng.integer(1, 5);
    for (let index = 0; index < count; index++) {
      if (rng.chance(0.5)) await scheduler.runFor(rng.float() * 200);
      this.#converse();
    }
    if (this.#options.quiet !== true) {
      await this.#suffer();
      this.#heal();
    }
    await scheduler.complete(this.#finished(), FINISH_MS);
    await this.#at.close();
    const [violation] = this.#at.violations;
    if (violation !== undefined) throw new LinkOracleError(`a side broke the protocol: ${violation.message}`);
    for (const { talkers } of this.#conversations) for (const talker of talkers) talker.checkReleased();
  }

  #converse(): void {
    const { rng } = this.#at.world;
    const opener = rng.pick(["source", "dest"] as const);
    const kind = rng.pick(CHANNEL_KINDS);
    // Through a narrow window much would take hours.
    const large = this.#windowBytes[kind] > 1000 ? 300_000 : 3000;
    const most = rng.pick([0, 100, 5000, 5000, large]);
    const quiet = this.#options.quiet === true;
    const conversation: Conversation = {
      opener,
      bytes: quiet ? [QUIET_BYTES, QUIET_BYTES] : [rng.integer(0, most), rng.integer(0, most)],
      salt: 2 * this.#conversations.length + 1,
      talkers: [],
      touchedByRestart: false,
    };
    const channel = this.#at[opener].link.open(kind, String(this.#conversations.length));
    this.#conversations.push(conversation);
    conversation.talkers.push(new Talker(channel, this.#talk(conversation, 0)));
  }

  #join(side: "source" | "dest", channel: Channel): void {
    const conversation = this.#conversations[Number(channel.label)];
    if (conversation === undefined || conversation.opener === side) throw new LinkOracleError("an unknown channel");
    if (conversation.talkers.length > 1 && !conversation.touchedByRestart) {
      throw new LinkOracleError(`${channel.peer} was opened twice`);
    }
    conversation.talkers.push(new Talker(channel, this.#talk(conversation, 1)));
  }

  #talk({ bytes, salt }: Conversation, end: 0 | 1): TalkParts {
    const { rng, scheduler } = this.#at.world;
    const [opener, other] = [
      { bytes: bytes[0], salt },
      { bytes: bytes[1], salt: salt + 1 },
    ];
    return {
      rng,
      sends: end === 0 ? opener : other,
      expects: end === 0 ? other : opener,
      writeBytesMax: rng.pick([10, 3000, 200_000]),
      pauses: rng.pick([0, 0, 0.2]),
      after: (delayMs, fire) => void scheduler.after(delayMs, "talker", fire),
    };
  }

  /** What goes wrong with a connection is drawn when it is made. */
  #spoil({ near, far }: SimConnection): void {
    const { rng } = this.#at.world;
    const { cut } = this.#options;
    if (cut !== undefined && this.#first) {
      if (cut.near !== undefined) near.cutAfter(cut.near);
      if (cut.far !== undefined) far.cutAfter(cut.far);
      this.#cuts += 1;
    }
    this.#first = false;
    if (!this.#faults || this.#options.quiet === true) return;
    if (rng.chance(0.6)) {
      const end = rng.pick([near, far]);
      end.cutAfter(rng.integer(0, rng.pick([300, 4096, 100_000])));
      this.#cuts += 1;
    }
  }

  async #suffer(): Promise<void> {
    const { rng, scheduler, net } = this.#at.world;
    const untilMs = scheduler.nowMs + rng.float() * FAULT_MS;
    while (scheduler.nowMs < untilMs) {
      await scheduler.runFor(rng.float() * rng.pick([5, 100, 1000]));
      const connection = rng.pick([...net.connections, undefined]);
      const what = rng.float();
      if (what < 0.1) this.#restart(rng.pick(["source", "dest"] as const));
      else if (connection !== undefined && what < 0.5) this.#block(connection);
      else if (connection !== undefined) connection.near.cut();
      this.#cuts += connection === undefined ? 0 : 1;
    }
  }

  /** One direction or both go dead; perhaps the line comes back, with what was on it. */
  #block({ near, far }: SimConnection): void {
    const { rng, scheduler } = this.#at.world;
    const ends = rng.pick([[near], [far], [near, far]]);
    for (const end of ends) end.block();
    if (rng.chance(0.5)) return;
    scheduler.after(rng.float() * rng.pick([100, 20_000]), "heal", () => {
      for (const end of ends) end.heal();
    });
  }

  #restart(side: "source" | "dest"): void {
    this.#restarts += 1;
    for (const conversation of this.#conversations) {
      // A process that dies takes its end with it; the other one has to be told.
      const dead = conversation.opener === side ? 0 : 1;
      const [survivor, victim] = [conversation.talkers[1 - dead], conversation.talkers[dead]];
      if (survivor?.closed === true && victim?.closed === true) continue;
      conversation.touchedByRestart = true;
      victim?.die();
    }
    if (side === "dest") this.#destConnections += this.#at.dest.link.status().connections;
    if (side === "source") this.#at.startSource();
    else this.#at.startDest();
  }

  #heal(): void {
    this.#faults = false;
    for (const { near, far } of this.#at.world.net.connections) {
      for (const end of [near, far]) {
        end.heal();
        end.cutAfter(Infinity);
      }
    }
  }

  async #finished(): Promise<void> {
    for (const conversation of this.#conversations) {
      if (conversation.touchedByRestart) continue;
      while (conversation.talkers.length < 2 && !conversation.touchedByRestart) await this.#wait(50);
      for (const talker of conversation.talkers) {
        await talker.over.promise;
        if (talker.error !== undefined) throw new LinkOracleError(`a channel was lost: ${talker.error.message}`);
        if (!talker.ended) throw new LinkOracleError("a channel was closed before its end");
      }
    }
    await this.#restsAreReset();
  }

  /** What a restart has touched is over at the side that lived on, too; what was opened since is not touched. */
  async #restsAreReset(): Promise<void> {
    for (const { touchedByRestart, talkers } of this.#conversations) {
      if (!touchedByRestart) continue;
      for (const talker of talkers) {
        await talker.over.promise;
        if (talker.error !== undefined && !(talker.error instanceof LinkError)) throw talker.error;
      }
    }
  }

  #wait(ms: number): Promise<void> {
    return new Promise((resolve) => {
      this.#at.world.scheduler.after(ms, "wait", resolve);
    });
  }
}
