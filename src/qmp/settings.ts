/**
 * How QEMU is to migrate, set before a migration, and set back to what it was when the guest stays: somebody else may
 * migrate it next.
 */
import type { QmpClient } from "./client.ts";
import { QmpCommandError, QmpError } from "./errors.ts";

/** Without these there is no instant at which a disk could be handed over, or no telling how it went. QEMU 2.11 has them. */
const NEEDED = ["events", "pause-before-switchover", "return-path"];

/**
 * multifd takes more than the one connection that a tunnel is. postcopy-ram, x-colo and background-snapshot are other
 * kinds of migration; with release-ram the source could not run on after a failure; `block` would copy the disks.
 */
const UNWANTED = ["multifd", "postcopy-ram", "x-colo", "background-snapshot", "release-ram", "block"];

/** More than any line: the link decides how fast memory goes (QEMU's own default is 128 MiB/s). */
const BANDWIDTH_BYTES_MAX = 2 ** 40;

export interface MigrationLimits {
  /** What memory may take of the line; default: all that the link gives it. */
  readonly bandwidthBytesPerSecond?: number;
  /** How long the guest may stand still for the last of its memory; default: QEMU's own, 300 ms. */
  readonly downtimeMs?: number;
}

/** Capabilities that this QEMU would need and lacks. */
export async function lackingCapabilities(client: QmpClient): Promise<string[]> {
  const known = new Set((await client.execute("query-migrate-capabilities")).map(({ capability }) => capability));
  return NEEDED.filter((name) => !known.has(name));
}

/** Sets all of it; what is returned sets it back. Rejects with `QmpError("state")` when this QEMU cannot. */
export async function applySettings(client: QmpClient, limits: MigrationLimits): Promise<() => Promise<void>> {
  const lacking = await lackingCapabilities(client);
  if (lacking.length > 0) {
    throw new QmpError("state", `QEMU ${client.version} cannot migrate with ${lacking.join(", ")}`);
  }
  const found = await client.execute("query-migrate-capabilities");
  const wrong = found.filter(({ capability, state }) => (state ? UNWANTED : NEEDED).includes(capability));
  const before = await client.execute("query-migrate-parameters");
  const wanted: Record<string, number> = { "max-bandwidth": limits.bandwidthBytesPerSecond ?? BANDWIDTH_BYTES_MAX };
  if (limits.downtimeMs !== undefined) wanted["downtime-limit"] = limits.downtimeMs;
  const parameters = Object.fromEntries(Object.keys(wanted).map((name) => [name, before[name]]));

  const turned = wrong.map(({ capability, state }) => ({ capability, state: !state }));
  await setCapabilities(client, turned);
  await client.execute("migrate-set-parameters", wanted);
  return async () => {
    await setCapabilities(client, wrong);
    await client.execute("migrate-set-parameters", parameters);
  };
}

/** On the destination: events, so that a change is known at once. One that cannot is asked every so often. */
export async function wishForEvents(client: QmpClient): Promise<void> {
  try {
    await setCapabilities(client, [{ capability: "events", state: true }]);
  } catch (error) {
    if (!(error instanceof QmpCommandError)) throw error;
  }
}

async function setCapabilities(
  client: QmpClient,
  capabilities: { capability: string; state: boolean }[],
): Promise<void> {
  if (capabilities.length > 0) await client.execute("migrate-set-capabilities", { capabilities });
}
