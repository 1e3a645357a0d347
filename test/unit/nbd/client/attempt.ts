/** A handshake under way: the client's outcome on one side, the script on the other. */
import { expect } from "vitest";
import type { NbdClient } from "../../../../src/nbd/client/client.ts";
import { type OpenOptions, openNbd } from "../../../../src/nbd/client/connect.ts";
import { type NbdConnectCode, NbdConnectError } from "../../../../src/nbd/client/errors.ts";
import { type PairOptions, streamPair } from "../../../support/stream-pair.ts";
import { ManualClock } from "./manual-clock.ts";
import { ALL_FLAGS, cat, ERR, OPT, REP, ScriptedServer, u16, u64 } from "./scripted-server.ts";

export interface Attempt {
  readonly server: ScriptedServer;
  readonly clock: ManualClock;
  readonly outcome: Promise<NbdClient | Error>;
}

export function attempt(options: Partial<OpenOptions> = {}, pair: PairOptions = {}): Attempt {
  const ends = streamPair(pair);
  const clock = new ManualClock();
  const server = new ScriptedServer(ends.server);
  const opening = openNbd(ends.client, clock, { exportName: "disk", ...options });
  return { server, clock, outcome: opening.catch((error: Error) => error) };
}

export async function connected(attempted: Attempt): Promise<NbdClient> {
  const outcome = await attempted.outcome;
  if (outcome instanceof Error) throw outcome;
  return outcome;
}

export async function refused(attempted: Attempt, code: NbdConnectCode): Promise<NbdConnectError> {
  const outcome = await attempted.outcome;
  expect(outcome).toBeInstanceOf(NbdConnectError);
  const error = outcome as NbdConnectError;
  expect(error.code).toBe(code);
  for (const line of [error.what, error.why, error.hint]) expect(line).toMatch(/\S/);
  return error;
}

/** Up to GO, as a server without extended headers. */
export async function haggle(server: ScriptedServer): Promise<void> {
  await server.greet();
  await server.answer(OPT.extended, ERR.unsup);
  await server.answer(OPT.structured, REP.ack);
  await server.answer(OPT.setMeta, REP.ack);
}

export const EXPORT = (sizeBytes: number | bigint = 4096, flags = ALL_FLAGS): Buffer =>
  cat(u16(0), u64(sizeBytes), u16(flags));
