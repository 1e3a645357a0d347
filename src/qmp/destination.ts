/**
 * The choreography on the destination QEMU, which was started with `-S -incoming …`: memory comes in; when all of it is
 * here, the guest stands still until its disks are here too and the source QEMU has said `completed`; then it runs (`cont`).
 *
 * Invariant: the guest runs only after the gate has said "start". The source's guest may run on until then, and its disks may
 * not be here.
 */
import type { QmpClient } from "./client.ts";
import { QmpCommandError, QmpError, QmpProtocolError } from "./errors.ts";
import type { MigrationInfo, StatusInfo } from "./messages.ts";
import { wishForEvents } from "./settings.ts";
import { watchMigration } from "./watch.ts";

export type GateResult =
  | { readonly kind: "start"; readonly guestWasRunning: boolean }
  | { readonly kind: "abandon"; readonly reason: Error };

export interface StartGate {
  /**
   * Asked when all of the memory is here. "start" when the disks are ours for writing and the source QEMU has completed;
   * "abandon" when the guest stays, or goes back, where it was. Rejecting leaves the guest standing here.
   */
  mayStart(): Promise<GateResult>;
}

export interface DestinationOptions {
  readonly client: QmpClient;
  readonly gate: StartGate;
  /** Where to listen, for a QEMU that was started with `-incoming defer`. */
  readonly incomingUri?: string;
  /** The source may begin to send. Must not throw. */
  readonly onListening?: () => void;
  /** Called with QEMU's own account now and then. Must not throw. */
  readonly onProgress?: (info: MigrationInfo) => void;
}

/**
 * - `started`: the guest is here; it runs unless it was paused on the source as well.
 * - `abandoned`: the guest is not to run here; this QEMU was told to quit.
 * - `failed`: memory did not come in. (QEMU up to 9.0 exits when that happens, and all one sees is its monitor closing.)
 */
export type DestinationOutcome =
  | { readonly kind: "started"; readonly guest: StatusInfo }
  | { readonly kind: "abandoned" | "failed"; readonly reason: Error };

const WAITING = "inmigrate";

/** Runs the choreography to its end. Rejects when QEMU is not in a state for it, and with what the gate rejects with. */
export async function runDestination(options: DestinationOptions): Promise<DestinationOutcome> {
  const { client, gate } = options;
  if ((await client.execute("query-status")).status === WAITING) {
    await wishForEvents(client);
    // For a QEMU that was started without -S: in this state it means that the guest is not to run by itself.
    await client.execute("stop");
    const failure = await memoryArrives(options);
    if (failure !== undefined) return { kind: "failed", reason: failure };
  }
  // Whoever was restarted may find all of it here, or the guest running already.
  const guest = await client.execute("query-status");
  if (guest.running) return { kind: "started", guest };
  const { status } = await client.execute("query-migrate");
  if (status !== "completed") {
    throw new QmpError("state", `the destination's guest is in state "${guest.status}", and no memory came in`, {
      hint: "start it with -S -incoming unix:PATH",
    });
  }
  const verdict = await gate.mayStart();
  if (verdict.kind === "start") return { kind: "started", guest: await letRun(client, verdict.guestWasRunning) };
  await quit(client);
  return { kind: "abandoned", reason: verdict.reason };
}

/** Resolves to why it does not, or to undefined when all of it is here. */
async function memoryArrives(options: DestinationOptions): Promise<Error | undefined> {
  const { client, incomingUri, onListening, onProgress } = options;
  if (incomingUri !== undefined) await client.execute("migrate-incoming", { uri: incomingUri });
  onListening?.();
  try {
    const { status, "error-desc": said } = await watchMigration(client, hasEnded, onProgress);
    if (status === "completed") return undefined;
    return new QmpError("state", `the incoming migration ended as "${status}"${said === undefined ? "" : `: ${said}`}`);
  } catch (error) {
    if (error instanceof QmpError || error instanceof QmpProtocolError) return error;
    throw error;
  }
}

function hasEnded({ status }: MigrationInfo): boolean {
  return status === "completed" || status === "failed" || status === "cancelled";
}

async function letRun(client: QmpClient, guestWasRunning: boolean): Promise<StatusInfo> {
  // Opening the disks for writing is part of it, for as long as they take.
  if (guestWasRunning) await client.execute("cont", undefined, { timeoutMs: null });
  return await client.execute("query-status");
}

/** A copy of the guest that is not to run is not to be left where somebody might continue it. */
async function quit(client: QmpClient): Promise<void> {
  try {
    await client.execute("quit");
  } catch (error) {
    if (error instanceof QmpCommandError) throw error;
  }
}
