/** A server of this process on real sockets, with clients that misbehave beside one that does not. */
import type { Address } from "../../../src/env/links.ts";
import type { ServerLimits } from "../../../src/nbd/server/limits.ts";
import { NbdServer } from "../../../src/nbd/server/server.ts";
import { realClock } from "../../../src/os/clock.ts";
import { listenOn } from "../../../src/os/listen.ts";
import { CMD, readData, type WireDialect, WireError } from "../../support/nbd-wire.ts";
import { pattern } from "../../support/patterns.ts";
import { dialRaw, type RawClient } from "../../support/raw-client.ts";
import { ScriptedDevice } from "../../support/scripted-device.ts";
import { keepingLog, type LogEntry } from "../../support/server-rig.ts";

export const DISK_BYTES = 8 * 1024 * 1024;
/** The part that only the good client writes to. */
const GOOD_OFFSET = 4 * 1024 * 1024;

export class SocketServer implements AsyncDisposable {
  readonly server: NbdServer;
  readonly device: ScriptedDevice;
  readonly address: Address;
  readonly log: LogEntry[];
  readonly #stop: () => void;

  private constructor(parts: Pick<SocketServer, "server" | "device" | "address" | "log">, stop: () => void) {
    this.server = parts.server;
    this.device = parts.device;
    this.address = parts.address;
    this.log = parts.log;
    this.#stop = stop;
  }

  static async listen(on: Address, limits: Partial<ServerLimits> = {}): Promise<SocketServer> {
    const device = new ScriptedDevice({ sizeBytes: DISK_BYTES, content: pattern(0, DISK_BYTES) });
    const log: LogEntry[] = [];
    const exports = [{ name: "", device, readOnly: false }];
    const server = new NbdServer({ clock: realClock, exports, limits, log: keepingLog(log) });
    const listener = await listenOn(on, (stream) => server.accept(stream));
    return new SocketServer({ server, device, address: listener.address, log }, () => listener.close());
  }

  dial(): Promise<RawClient> {
    const { address } = this;
    return dialRaw(address.kind === "unix" ? address.path : address);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#stop();
    await this.server.close({ graceMs: 100 });
  }
}

/** The whole life of a client that behaves. Throws when it is not served as it should be; resolves to the milliseconds it took. */
export async function beGoodClient(client: RawClient, dialect: WireDialect = "structured"): Promise<number> {
  const startMs = performance.now();
  const { sizeBytes } = await client.go({ dialect });
  const salt = (Math.floor(startMs) % 60_000) + 1;
  // As long as requests of this size may be, one client is served at once whatever others hold.
  const payload = pattern(GOOD_OFFSET, 120_000, salt);
  const offset = Math.min(GOOD_OFFSET, sizeBytes - payload.length);
  const flags = dialect === "extended" ? 32 : 0;
  const written = await client.call({ command: CMD.WRITE, offset, payload, flags });
  if (written.error !== 0) throw new WireError(`the good client's write failed with ${written.error}`);
  const flushed = await client.call({ command: CMD.FLUSH });
  if (flushed.error !== 0) throw new WireError(`the good client's flush failed with ${flushed.error}`);
  const back = await client.call({ command: CMD.READ, offset, length: payload.length });
  if (!readData(back, offset, payload.length).equals(payload))
    throw new WireError("the good client read something else");
  client.begin({ command: CMD.DISC });
  const rest = await client.takeAll();
  if (rest.length > 0) throw new WireError(`${rest.length} bytes after DISC`);
  client.end();
  return performance.now() - startMs;
}
