/** A server over devices in memory, clients in memory, a clock that tests move: what server tests are run on. */
import type { BlockDevice } from "../../src/block/device.ts";
import type { NbdExport } from "../../src/nbd/server/export.ts";
import type { ServerLimits } from "../../src/nbd/server/limits.ts";
import { NbdServer, type NbdServerOptions } from "../../src/nbd/server/server.ts";
import type { LogFields, ServerLog } from "../../src/nbd/server/server-log.ts";
import { ManualClock } from "../unit/nbd/client/manual-clock.ts";
import { type GoOptions, type RawClient, rawClientOver } from "./raw-client.ts";
import { type PairedStream, type PairOptions, streamPair } from "./stream-pair.ts";

export interface RigOptions {
  readonly device?: BlockDevice;
  /** In place of one writable export named "" over `device`. */
  readonly exports?: readonly NbdExport[];
  readonly limits?: Partial<ServerLimits>;
  readonly tls?: NonNullable<NbdServerOptions["tls"]>;
  readonly onClientCount?: (clients: number) => void;
}

export interface LogEntry {
  readonly level: "debug" | "info" | "warn" | "error";
  readonly message: string;
  readonly fields: LogFields;
}

/** One client, with both ends of its stream. */
export interface RigClient {
  readonly client: RawClient;
  readonly near: PairedStream;
  readonly far: PairedStream;
}

export class ServerRig {
  readonly clock = new ManualClock();
  readonly log: LogEntry[] = [];
  readonly server: NbdServer;

  constructor(options: RigOptions) {
    const { device, exports } = options;
    this.server = new NbdServer({
      clock: this.clock,
      exports: exports ?? (device === undefined ? [] : [{ name: "", device, readOnly: false }]),
      log: keepingLog(this.log),
      ...(options.limits && { limits: options.limits }),
      ...(options.tls && { tls: options.tls }),
      ...(options.onClientCount && { onClientCount: options.onClientCount }),
    });
  }

  connect(how: PairOptions = {}): RigClient {
    const { client: near, server: far } = streamPair(how);
    const client = rawClientOver(near);
    this.server.accept(far);
    return { client, near, far };
  }

  /** A client that is through the handshake. */
  async open(go: GoOptions = {}, how: PairOptions = {}): Promise<RigClient> {
    const connected = this.connect(how);
    await connected.client.go(go);
    return connected;
  }

  /** Messages at `level`. */
  logged(level: LogEntry["level"]): string[] {
    return this.log.filter((entry) => entry.level === level).map(({ message }) => message);
  }
}

/** A log that keeps everything in `entries`. */
export function keepingLog(entries: LogEntry[]): ServerLog {
  const keep =
    (level: LogEntry["level"]) =>
    (message: string, fields: LogFields = {}) =>
      void entries.push({ level, message, fields });
  return { debug: keep("debug"), info: keep("info"), warn: keep("warn"), error: keep("error") };
}

/** Lets everything run that needs neither time nor the outside world. */
export async function settle(turns = 3): Promise<void> {
  for (let turn = 0; turn < turns; turn++) await new Promise((resolve) => setImmediate(resolve));
}
