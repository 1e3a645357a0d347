/** What a control server is given. */
import type { Clock } from "../env/clock.ts";
import type { VerbRegistry } from "./registry.ts";

export interface ControlLog {
  warn(message: string, fields?: Readonly<Record<string, unknown>>): void;
  error(message: string, fields?: Readonly<Record<string, unknown>>): void;
}

/** Who we are, as the greeting says it. */
export interface Identity {
  readonly program: string;
  readonly programVersion: string;
  readonly pid: number;
  /** "serve", "clone", … */
  readonly role: string;
}

export interface ControlServerOptions {
  readonly registry: VerbRegistry;
  readonly identity: Identity;
  readonly clock: Clock;
  readonly log: ControlLog;
}
