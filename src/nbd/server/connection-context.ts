/** What the parts of one connection share. */
import type { BufferPool } from "../../util/buffer-pool.ts";
import type { BudgetAccount } from "../../util/payload-budget.ts";
import type { NbdProtocolError } from "../error.ts";
import type { MetaContext, NbdExport } from "./export.ts";
import type { DeviceGuard } from "./guard.ts";
import type { ServerLimits } from "./limits.ts";

/** What client and server agreed on during the handshake. */
export interface Negotiated {
  readonly exported: NbdExport;
  readonly structured: boolean;
  readonly extended: boolean;
  readonly contexts: readonly SelectedContext[];
}

export interface SelectedContext {
  readonly id: number;
  readonly context: MetaContext;
}

export interface ConnectionContext {
  readonly limits: ServerLimits;
  readonly pool: BufferPool;
  readonly account: BudgetAccount;
  readonly guard: DeviceGuard;
  /** All that was asked is answered, and no more is wanted: the connection is to end. */
  finished(): void;
  /** Logs and closes the connection at once. */
  protocolError(error: NbdProtocolError): void;
}

/** Stops and restarts the taking of requests. Calls are counted. */
export interface Flow {
  block(): void;
  unblock(): void;
}
