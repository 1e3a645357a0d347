/** The guest of this host gets its disks, unless it has the images open itself. */
import type { SourceMigration } from "../../migrate/source.ts";
import type { Cleanup } from "../cleanup.ts";
import { guestExports } from "../migration/guest-side.ts";
import { MeteredDevice, type WriteMeter } from "../migration/metered-device.ts";
import { type ServeSurroundings, startServing } from "../serving/start.ts";
import type { ServedAs } from "../serving/uri.ts";
import type { SourcePlan } from "./plan.ts";

export interface GuestServing {
  readonly migration: SourceMigration;
  readonly meter: WriteMeter;
  readonly cleanup: Cleanup;
}

/** Resolves to where clients can connect. */
export async function serveGuest(
  plan: SourcePlan,
  around: ServeSurroundings,
  { migration, meter, cleanup }: GuestServing,
  onClientCount: (clients: number) => void,
): Promise<ServedAs> {
  if (plan.lateOpen) return { address: plan.link, exportName: "", tls: plan.tls };
  const guests = migration.exports.map(({ name, guest }) => ({ name, guest: new MeteredDevice(guest, meter) }));
  const exports = guestExports(guests);
  const { served } = await startServing(plan.serve, around, {
    exports,
    credentials: undefined,
    cleanup,
    onClientCount,
  });
  return served;
}
