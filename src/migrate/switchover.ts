/**
 * How the source gives its disks away, all of them at once:
 *
 *   the destination stops pulling → changes are held, those under way drain → flush → what is clean is told →
 *   whoever asked for it confirms → FENCED is durable for every disk → grant
 *
 * Up to the fences everything can be taken back, and is when anything goes wrong: what was held goes on. After the fences
 * only the destination's word counts. If fences could not be written, no grant was sent: the disks are taken at a new term.
 */
import type { Env } from "../env/env.ts";
import { Change } from "../stream/change.ts";
import { identifySource } from "../stream/source-identity.ts";
import { MigrationError, messageOf } from "./errors.ts";
import { CLEAN_PAGES_MAX, type FromSource } from "./messages.ts";
import type { PhaseBook } from "./phase-book.ts";
import type { SourcePhase } from "./phases.ts";
import type { SourceDisk } from "./source-disk.ts";
import type { SourcePort } from "./source-link.ts";
import type { SourceLimits } from "./source-options.ts";
import type { SourceRecords } from "./source-records.ts";
import type { WriteGate } from "./write-gate.ts";

/** What a switchover needs of the source. */
export interface Switching {
  readonly env: Pick<Env, "clock" | "chaos">;
  readonly limits: SourceLimits;
  readonly disks: readonly SourceDisk[];
  readonly gate: WriteGate;
  readonly link: { readonly port: SourcePort | undefined; readonly connected: boolean };
  readonly phases: PhaseBook<SourcePhase>;
  readonly records: Pick<SourceRecords, "write" | "settle">;
  readonly term: number;
  readonly trackingId: string;
  /** The id of the `prepare` that the destination answered last. */
  readonly prepared: number;
  /** Why a switchover that is under way should go back, if it can. */
  readonly callOff: string | undefined;
  /** What the last switchover has waited for durability, on both sides: flushes, fences, the destination's maps and record. */
  syncMs: number;
  nextPrepareId(): number;
  /** Guests go on, unless everything is ending. */
  openGate(): void;
}

export interface SwitchoverOptions {
  /**
   * Asked once changes are held and those before them are durable. What it rejects with calls the switchover off: nothing
   * has been given away by then.
   */
  readonly confirm?: (() => Promise<void>) | undefined;
}

/**
 * In the source's line. Returns when the grant is on its way; throws `MigrationError`, or what `confirm` has rejected with,
 * when nothing was given away.
 */
export async function switchOver(source: Switching, { confirm }: SwitchoverOptions = {}): Promise<void> {
  if (source.phases.is("granted", "serving", "released")) return;
  const { port } = source.link;
  if (source.phases.current !== "ready" || port === undefined) {
    throw new MigrationError(
      "phase",
      `the migration is in phase ${source.phases.current}, not ready`,
      "wait for ready",
    );
  }
  source.syncMs = 0;
  // Terms are not used twice, and fences of two switchovers would not go together.
  if (!(await source.records.settle())) throw unsettledError();
  let granting: Promise<GrantedDisks>;
  try {
    await prepare(source, port);
    await freeze(source, port);
    granting = describe(source);
    // It may be nobody's when it fails.
    granting.catch(() => undefined);
    await confirm?.();
    checkOnCourse(source, port);
  } catch (error) {
    thaw(source, port, messageOf(error));
    throw error;
  }
  const term = source.term + 1;
  const fenced = syncing(source, () => fence(source, port, term));
  if (source.env.chaos.on("migrate/grant-before-fence")) await grant(source, port, { term });
  await fenced;
  source.phases.advance("granted");
  await grant(source, port, { granting });
}

/** The destination is there, and has nothing under way. */
async function prepare(source: Switching, port: SourcePort): Promise<void> {
  const id = source.nextPrepareId();
  port.send({ type: "prepare", id });
  await within(source, source.limits.prepareMsMax, "the destination does not answer", async (changed) => {
    while (source.prepared !== id) {
      checkOnCourse(source, port);
      await changed();
    }
  });
}

/** Changes are held, and what was let through before is durable. */
async function freeze(source: Switching, port: SourcePort): Promise<void> {
  checkOnCourse(source, port);
  if (source.phases.current !== "ready") {
    throw new MigrationError("phase", "the destination is not ready any more", "wait for ready, and try again");
  }
  source.phases.advance("frozen");
  source.gate.hold();
  await within(source, source.limits.drainMsMax, "requests under way do not end", () => source.gate.drained());
  for (const { clean } of source.disks) clean.seal();
  const flushing = (): Promise<unknown> => Promise.all(source.disks.map(({ device }) => device.flush()));
  await syncing(source, () => within(source, source.limits.drainMsMax, "the flush does not end", flushing));
  await sendClean(source, port);
}

async function syncing<T>(source: Switching, work: () => Promise<T>): Promise<T> {
  const startMs = source.env.clock.nowMs();
  const done = await work();
  source.syncMs += source.env.clock.nowMs() - startMs;
  return done;
}

async function fence(source: Switching, port: SourcePort, term: number): Promise<void> {
  try {
    await source.records.write("FENCED", term);
  } catch (error) {
    // Some fences may be there. All of them together would be a promise that was never made. Nothing was granted: the guest
    // goes on all the same. Only a restart would take the fences for meant, and ask the destination.
    await source.records.settle(term + 1);
    thaw(source, port, messageOf(error));
    throw error;
  }
}

function unsettledError(): MigrationError {
  const why = "what the last switchover has left in the records cannot be recorded over";
  return new MigrationError("io", why, "check the file system that the images are on; the disks are still here");
}

function thaw(source: Switching, port: SourcePort, reason: string): void {
  for (const { clean } of source.disks) clean.unseal();
  source.openGate();
  if (source.phases.current === "frozen") source.phases.advance("ready");
  if (source.link.port === undefined) source.phases.advance("precopy");
  port.send({ type: "thawed", reason });
  source.phases.warn(`the switchover did not take place: ${reason}`);
}

type GrantedDisks = (FromSource & { type: "grant" })["disks"];

/** What the destination is to find, of disks that do not change any more. */
function describe({ disks }: Pick<Switching, "disks">): Promise<GrantedDisks> {
  return Promise.all(
    disks.map(async ({ name, clean, device }) => ({
      ...{ name, count: clean.count, checksum: clean.checksum() },
      identity: await identifySource(device),
    })),
  );
}

/** The fences are durable. May be sent again: the destination takes it up once. */
export async function grant(
  source: Switching,
  port: SourcePort,
  { term = source.term, granting = describe(source) }: { term?: number; granting?: Promise<GrantedDisks> } = {},
): Promise<void> {
  await sendClean(source, port);
  const { trackingId } = source;
  port.send({ type: "grant", term, trackingId, disks: await granting });
}

/** Tells all that has become clean, or is not any more, since it was told last. */
export async function sendClean(source: Switching, port: SourcePort): Promise<void> {
  for (const { name, clean } of source.disks) {
    for (;;) {
      await port.room();
      const pages = clean.takeChanged(CLEAN_PAGES_MAX);
      if (pages.length === 0 || port.closed) break;
      port.send({ type: "clean", disk: name, pages });
    }
  }
}

/** Throws unless the destination can be reached and nobody has called it off. */
function checkOnCourse(source: Switching, port: SourcePort): void {
  if (source.callOff !== undefined) {
    throw new MigrationError("cancelled", `it was called off: ${source.callOff}`, "the disks are still here");
  }
  if (source.link.port === port && source.link.connected) return;
  throw new MigrationError("not-connected", "the destination was lost", "try again when it is back");
}

/** `work`, unless it takes too long. `changed` resolves at the next change of the source, or when time is up. */
async function within<T>(
  source: Switching,
  limitMs: number,
  why: string,
  work: (changed: () => Promise<void>) => Promise<T>,
): Promise<T> {
  const late = new Change();
  const expired = Promise.withResolvers<never>();
  const timer = source.env.clock.setTimer(limitMs, () => {
    expired.reject(new MigrationError("not-connected", why, "the disks are still here; try again"));
    late.notify();
  });
  // It may be nobody's any more when it comes.
  expired.promise.catch(() => undefined);
  try {
    return await Promise.race([work(() => Promise.race([source.phases.change.next(), late.next()])), expired.promise]);
  } finally {
    timer.cancel();
  }
}
