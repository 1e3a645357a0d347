/** How a destination reaches its source, and what becomes of it if it never does. */
import type { Env } from "../../env/env.ts";
import { formatAddress } from "../../env/links.ts";
import { dialLink, type Upgraded } from "../../link/upgrade.ts";
import type { DestinationMigration } from "../../migrate/destination.ts";
import type { DestinationExport } from "../../migrate/destination-options.ts";
import { NbdConnectError } from "../../nbd/client/errors.ts";
import { NodeTlsClient } from "../../os/tls.ts";
import { loadClientCertificates, loadPskFile } from "../../os/tls-credentials.ts";
import { CliError } from "../cli-error.ts";
import { EXIT_UNAVAILABLE } from "../exit-codes.ts";
import type { Log } from "../log.ts";
import type { StopRequest } from "../serving/stop-request.ts";
import type { DestPlan } from "./plan.ts";

export interface Connector {
  readonly connect: (signal: AbortSignal) => Promise<Upgraded>;
  /** Why the first attempt failed; settles in no other case. Never rejects. */
  readonly firstFailure: Promise<unknown>;
}

/** Loads the credentials, once. Rejects with `TlsError`. */
export async function sourceConnector(env: Env, { from, tls: plan }: DestPlan, log: Log): Promise<Connector> {
  const tls = plan.mode === "off" ? ({ mode: "off" } as const) : await clientTls(env, { from, tls: plan }, log);
  const first = Promise.withResolvers<unknown>();
  let attempts = 0;
  const connect = async (signal: AbortSignal): Promise<Upgraded> => {
    attempts += 1;
    try {
      return await dialLink(env, { address: from, tls, signal });
    } catch (error) {
      if (attempts === 1) first.resolve(error);
      throw error;
    }
  };
  return { connect, firstFailure: first.promise };
}

async function clientTls(
  env: Env,
  { from, tls }: { from: DestPlan["from"]; tls: Exclude<DestPlan["tls"], { mode: "off" }> },
  log: Log,
): Promise<{ mode: "require"; client: NodeTlsClient }> {
  const serverName = from.kind === "tcp" ? from.host : "localhost";
  if (tls.credentials.kind === "psk") {
    const credentials = await loadPskFile(tls.credentials.file);
    const [pskName = ""] = credentials.keys.names;
    return { mode: "require", client: new NodeTlsClient({ credentials, serverName, pskName }) };
  }
  const credentials = await loadClientCertificates(tls.credentials.directory, env.clock.wallMs());
  for (const warning of credentials.warnings) log.warn(warning);
  return { mode: "require", client: new NodeTlsClient({ credentials, serverName }) };
}

export interface FirstContact {
  readonly migration: DestinationMigration;
  readonly connector: Connector;
  readonly stop: StopRequest;
  readonly plan: DestPlan;
}

/** The disks, once they are known. Undefined: told to stop meanwhile. Rejects when the source cannot be reached at all. */
export async function firstContact({
  migration,
  connector,
  stop,
  plan,
}: FirstContact): Promise<readonly DestinationExport[] | undefined> {
  const exports = backAtTheSource(migration).then(() => migration.exports());
  exports.catch(() => undefined);
  // An owner knows its disks, and goes on without the source; who gives them back waits until it can be told.
  const failed = connector.firstFailure.then(async (error): Promise<never> => {
    const { owner, phase } = migration.status();
    if (owner === "destination" || phase === "returning") return await new Promise<never>(() => undefined);
    throw asCliError(error, plan);
  });
  failed.catch(() => undefined);
  return await Promise.race([exports, failed, stop.wished.then(() => undefined)]);
}

/** What an earlier life has given back is the source's only once it knows. */
async function backAtTheSource(migration: DestinationMigration): Promise<void> {
  if (migration.phase === "returning") await migration.whenPhase("cancelled", "failed");
}

function asCliError(error: unknown, { from }: DestPlan): unknown {
  if (!(error instanceof NbdConnectError) || (error.code !== "unsupported" && error.code !== "refused")) return error;
  return new CliError(
    {
      exitCode: EXIT_UNAVAILABLE,
      code: "no-link",
      what: `cannot move disks from ${formatAddress(from)}`,
      why: "what answers there cannot hand a disk over (it knows no link, or another version of it)",
      hint: "give the address that `blockferry source` prints; from any other NBD server, `blockferry clone` copies",
    },
    { cause: error },
  );
}
