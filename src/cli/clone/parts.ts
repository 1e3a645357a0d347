/** The parts of a running clone: overlay, the two sessions with the source, hydration. */
import type { Overlay } from "../../cor/overlay.ts";
import type { Env } from "../../env/env.ts";
import type { GuestDevice } from "../../stream/guest-device.ts";
import type { Hydrator } from "../../stream/hydrator.ts";
import { ListedOrder } from "../../stream/order.ts";
import { paceSources, startPull } from "../../stream/pull.ts";
import { ReconnectingSource } from "../../stream/reconnecting-source.ts";
import type { Cleanup } from "../cleanup.ts";
import type { ClonePlan } from "./plan.ts";
import { type Begun, openBegunOverlay } from "./prepare.ts";
import type { ConnectSource } from "./source.ts";
import { readTrace, recordTrace } from "./trace.ts";

export interface CloneParts {
  readonly overlay: Overlay;
  /** The overlay, as clients use it. */
  readonly guest: GuestDevice;
  /** For what clients wait for. */
  readonly demand: ReconnectingSource;
  readonly background: ReconnectingSource;
  readonly hydrator: Hydrator;
}

export interface StartParts {
  readonly env: Env;
  readonly plan: ClonePlan;
  readonly begun: Begun;
  readonly connect: ConnectSource;
  readonly cleanup: Cleanup;
}

/** Opens the overlay and starts to hydrate it. `cleanup` ends it in the right order: sources first, the overlay last. */
export async function startParts({ env, plan, begun, connect, cleanup }: StartParts): Promise<CloneParts> {
  const { clock, random, chaos } = env;
  const expected = { sizeBytes: begun.sizeBytes, identity: begun.identity };
  // Requests that wait for a source keep the overlay from closing.
  let closeOverlay = async (): Promise<void> => undefined;
  cleanup.defer(() => closeOverlay());
  const demand = new ReconnectingSource({
    ...{ clock, random, chaos, connect, expected },
    onLoss: plan.onSourceLoss,
    lossDeadlineMs: plan.sourceLossDeadlineMs,
  });
  cleanup.defer(() => demand.close());
  // Hydration waits for the source, whatever clients are told.
  const background = new ReconnectingSource({ ...{ clock, random, chaos, connect, expected }, onLoss: "stall" });
  cleanup.defer(() => background.close());
  const { sizeBytes } = expected;
  const trace =
    plan.recordTrace === undefined ? undefined : recordTrace(plan.recordTrace, { clock, sizeBytes, cleanup });
  const wanted = plan.replayTrace === undefined ? [] : readTrace(plan.replayTrace, sizeBytes);
  const sources = paceSources(env, demand, background);
  const overlay = await openBegunOverlay(env, begun.place, sources);
  closeOverlay = async () => {
    // What was fetched since the last commit would have to be fetched again. Failures were told when clients' were flushed.
    await overlay.commit().catch(() => undefined);
    await overlay.close();
  };
  const { rateBytesPerSecond: rate, windowBytes } = plan;
  const { guest, hydrator } = startPull(env, {
    ...{ target: overlay, sources, orders: [new ListedOrder(wanted, overlay)] },
    ...(rate !== undefined && { rate }),
    ...(windowBytes !== undefined && { windowBytes }),
    ...(trace !== undefined && { onRead: (offset, length, missing) => trace.note(offset, length, missing) }),
  });
  cleanup.defer(() => hydrator[Symbol.asyncDispose]());
  // Then the source is not needed any more, and should see that it may go.
  hydrator.onState((state) => state === "complete" && void Promise.all([demand.close(), background.close()]));
  return { overlay, guest, demand, background, hydrator };
}
