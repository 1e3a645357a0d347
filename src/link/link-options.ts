/** What a link is told when it is made, and what it tells of itself. */
import type { Env } from "../env/env.ts";
import type { Channel } from "./channel.ts";
import type { Hello } from "./hello.ts";
import type { LinkLimits } from "./limits.ts";
import type { LinkState } from "./link-states.ts";

export interface LinkLog {
  info(message: string, fields?: Record<string, unknown>): void;
  warn(message: string, fields?: Record<string, unknown>): void;
}

/** What a side says of itself in each hello. Ids are 32 lower-case hexadecimal digits. */
export interface LinkIdentity {
  readonly trackingId: string;
  readonly term: number;
}

export interface LinkOptions {
  readonly env: Pick<Env, "clock" | "random" | "chaos">;
  readonly role: "dialling" | "listening";
  /** The migration. The side that dials may learn it from the other one. */
  readonly linkId?: string;
  /** This side, the same after a restart of the process. */
  readonly ownId: string;
  /** The only peer that is let in, where it is known already. */
  readonly peerId?: string;
  /** Asked for each hello. */
  readonly identity: () => LinkIdentity;
  /** Looks at what the peer says of itself; a reason refuses it for good. */
  readonly judge?: (hello: Hello) => string | undefined;
  /** The peer has opened a channel: attach a sink to it, or destroy it. */
  readonly onChannel: (channel: Channel) => void;
  /** Told within the change: must not throw. */
  readonly onState?: (state: LinkState) => void;
  readonly limits?: Partial<LinkLimits>;
  readonly log: LinkLog;
}

export interface LinkStatus {
  readonly state: LinkState;
  readonly forMs: number;
  readonly connections: number;
  readonly linkId: string | undefined;
  readonly peerId: string | undefined;
  readonly rttMs: number | undefined;
  readonly rttMinMs: number | undefined;
  /** On the present connection, frames and all. */
  readonly sentBytes: number;
  readonly receivedBytes: number;
  readonly channels: number;
  /** Windows of all channels together. */
  readonly memoryBytes: number;
  readonly lastError: string | undefined;
}
