/** A client of ours whose server is a script. */
import type { NbdClient } from "../../../../src/nbd/client/client.ts";
import { type OpenOptions, openNbd } from "../../../../src/nbd/client/connect.ts";
import { type PairedStream, type PairOptions, streamPair } from "../../../support/stream-pair.ts";
import { ManualClock } from "./manual-clock.ts";
import { type HandshakeScript, ScriptedServer } from "./scripted-server.ts";

export interface Scripted {
  readonly client: NbdClient;
  readonly server: ScriptedServer;
  readonly clock: ManualClock;
  /** The client's end of the connection. */
  readonly stream: PairedStream;
}

export interface ScriptedOptions {
  readonly handshake?: HandshakeScript;
  readonly open?: Partial<OpenOptions>;
  readonly pair?: PairOptions;
}

/** A client past its handshake. */
export async function scripted(options: ScriptedOptions = {}): Promise<Scripted> {
  const pair = streamPair(options.pair);
  const clock = new ManualClock();
  const server = new ScriptedServer(pair.server);
  const opening = openNbd(pair.client, clock, { exportName: "disk", ...options.open });
  await server.handshake(options.handshake);
  return { client: await opening, server, clock, stream: pair.client };
}

/** What an operation came to: "success", or its error. */
export function outcomeOf(work: Promise<unknown>): Promise<unknown> {
  return work.then(
    () => "success",
    (error: unknown) => error,
  );
}

/** Lets everything happen that can happen without time passing. */
export async function settled(): Promise<void> {
  for (let turn = 0; turn < 200; turn++) await Promise.resolve();
}
