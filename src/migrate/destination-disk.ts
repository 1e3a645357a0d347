/**
 * One disk of a destination. First a store that is filled provisionally (`precopy.ts`), then, once it is granted, an
 * overlay that is hydrated; all the while one device for the guest.
 */
import type { BlockDevice } from "../block/device.ts";
import type { MapState, OverlayStore } from "../block/overlay-store.ts";
import { openIntentLog } from "../cor/intent-log.ts";
import { peekMap } from "../cor/map-peek.ts";
import { publishMap, rehearseMap } from "../cor/map-publish.ts";
import type { Overlay } from "../cor/overlay.ts";
import { logPath, mapPath, openOverlay } from "../cor/overlay-files.ts";
import type { Env } from "../env/env.ts";
import type { ServerLog } from "../nbd/server/server-log.ts";
import { SourceMismatchError } from "../stream/errors.ts";
import { type PacedSources, type Pull, paceSources, startPull } from "../stream/pull.ts";
import { RateLimiter } from "../stream/rate-limit.ts";
import { ReconnectingSource } from "../stream/reconnecting-source.ts";
import { compareSources, identifySource } from "../stream/source-identity.ts";
import type { SourceSession } from "../stream/source-session.ts";
import { recordsOf } from "./destination-files.ts";
import type { DestinationDiskStatus, DestinationDisk as DiskOptions } from "./destination-options.ts";
import { MigrationError, messageOf } from "./errors.ts";
import { ExportDevice } from "./export-device.ts";
import { checkGrain, GrainSet } from "./grain-set.ts";
import type { DestinationDiskEntry } from "./group-records.ts";
import { idBytes } from "./ids.ts";
import { type HeatMessage, LateOrder } from "./late-order.ts";
import type { FromSource } from "./messages.ts";
import { Precopy } from "./precopy.ts";

export interface DestinationDiskParts {
  readonly env: Env;
  readonly options: DiskOptions;
  readonly entry: DestinationDiskEntry;
  readonly bootId: string;
  readonly earlyReads: "passthrough" | "refuse";
  readonly onSourceLoss: "stall" | "eio";
  readonly lossDeadlineMs: number | undefined;
  readonly rate: number | undefined;
  readonly log: ServerLog;
  /** Opens a session over the link, once the source has welcomed us. */
  readonly connect: (kind: "read" | "pull", disk: string, signal: AbortSignal) => Promise<SourceSession>;
  /** As `PrecopyParts.sync`. */
  readonly sync: () => Promise<boolean>;
  readonly noteWrite: () => Promise<void>;
  /** What is not for a guest that has just come waits until this resolves. */
  readonly leisure: Promise<void>;
  readonly onProgress: () => void;
}

type Grant = Extract<FromSource, { type: "grant" }>;
/** What a grant says of a disk. */
export type Granted = Omit<Grant["disks"][number], "name"> & Pick<Grant, "trackingId" | "term">;

/** A disk while its guest is elsewhere. */
interface Round {
  readonly trackingId: string;
  readonly landed: GrainSet;
  readonly clean: GrainSet;
  readonly precopy: Precopy | undefined;
  readonly source: ReconnectingSource | undefined;
}

export class DestinationDisk {
  readonly entry: DestinationDiskEntry;
  readonly #parts: DestinationDiskParts;
  readonly #demand: ReconnectingSource;
  readonly #limiter: RateLimiter;
  readonly #heat: LateOrder;
  readonly #closing = new Set<Promise<unknown>>();
  #rate: number | undefined;
  #sourceRate: number | undefined;
  #paused = false;
  #store: OverlayStore | undefined;
  #guest: ExportDevice | undefined;
  #round: Round | undefined;
  #identity: string | undefined;
  #background: ReconnectingSource | undefined;
  #sources: PacedSources | undefined;
  #overlay: Overlay | undefined;
  #pull: Pull | undefined;
  #pulledAgainBytes = 0;
  /** Of the session of the last round. */
  #roundClosed: Promise<unknown> | undefined;

  constructor(parts: DestinationDiskParts) {
    this.#parts = parts;
    this.entry = parts.entry;
    this.#rate = parts.rate;
    this.#limiter = new RateLimiter(parts.env.clock, parts.rate);
    this.#heat = new LateOrder(parts.env.chaos);
    this.#demand = this.#newSource("read", parts.onSourceLoss);
  }

  get name(): string {
    return this.entry.name;
  }

  /** Once there is a store. */
  get guest(): ExportDevice {
    if (this.#guest === undefined) throw new Error("the disk is not set up");
    return this.#guest;
  }

  get overlay(): Overlay | undefined {
    return this.#overlay;
  }

  get pull(): Pull | undefined {
    return this.#pull;
  }

  get restBytes(): number {
    const { landed } = this.#round ?? {};
    return landed === undefined ? this.entry.sizeBytes : Math.max(0, landed.sizeBytes - landed.bytes);
  }

  /** Makes an empty image in the place of whatever an earlier life has left of this migration. */
  async make(): Promise<void> {
    const { env, bootId, options } = this.#parts;
    const { sizeBytes, clusterBytes } = this.entry;
    const uuid = idBytes(this.entry.uuid);
    const image = recordsOf(options);
    await options.format.create({ sizeBytes, uuid, begun: false });
    this.#store = await options.format.open({ sizeBytes, uuid, clusterBytes, state: "new" });
    await rehearseMap(env, { image, uuid, sizeBytes, clusterBytes, sourceIdentity: "", term: 0 });
    // It is there when the disk is taken: a guest waits then, and a new file costs it as much as a sync.
    const { log } = await openIntentLog(env, { path: logPath(image), uuid, bootId });
    await log.close();
    this.#guest = this.#newGuest(this.#store.capabilities);
  }

  /** Nothing that was pulled before counts any more. `pulls`: begins to pull. */
  async beginRound(trackingId: string, grainBytes: number, pulls: boolean): Promise<void> {
    const { env } = this.#parts;
    const { sizeBytes, clusterBytes } = this.entry;
    checkGrain(sizeBytes, grainBytes);
    if (grainBytes < clusterBytes) {
      const why = `clusters of ${clusterBytes} bytes are larger than the source's grains of ${grainBytes}`;
      throw new MigrationError("phase", why, "choose smaller clusters");
    }
    const before = this.#round;
    await this.endRound();
    const kept = env.chaos.on("migrate/tracking-ignored") ? before : undefined;
    const landed = kept?.landed ?? new GrainSet(sizeBytes, grainBytes);
    const clean = kept?.clean ?? new GrainSet(sizeBytes, grainBytes);
    // Without a session of its own a round that is over could still mark grains for this one.
    const source = pulls ? this.#newSource("pull", "stall") : undefined;
    this.#round = { trackingId, landed, clean, source, precopy: source && this.#precopy(source, landed, clean) };
  }

  /** Stops pulling. Resolves when nothing of it can reach the store. `idle`: its session is not closed before. */
  async endRound(idle?: Promise<void>): Promise<void> {
    const { precopy, source } = this.#round ?? {};
    if (this.#round !== undefined) this.#round = { ...this.#round, precopy: undefined, source: undefined };
    this.#pulledAgainBytes += precopy?.pulledAgainBytes ?? 0;
    // In one turn: from now on it does not store, and unless its session is left for later, it does not ask either.
    const stopping = precopy?.stop();
    this.#roundClosed = source && (idle === undefined ? source.close() : idle.then(() => source.close()));
    this.#closeLater(this.#roundClosed);
    this.#closeLater(precopy?.ended());
    await stopping;
  }

  /** A page of the source's clean set. Throws `MigrationProtocolError`. */
  learnClean(page: number, bits: Uint8Array): void {
    this.#round?.clean.putPage(page, bits);
  }

  async hold(): Promise<void> {
    await this.#round?.precopy?.hold();
  }

  go(): void {
    this.#round?.precopy?.go();
  }

  /**
   * The source is frozen, and the disk is offered: what counts of what has landed becomes the map, durably. False: the round
   * was another one than was granted, and nothing that was pulled counts.
   */
  async publish(granted: Granted): Promise<boolean> {
    await this.endRound(this.#parts.leisure);
    const { env, options } = this.#parts;
    const { sizeBytes, clusterBytes, uuid } = this.entry;
    const landed = this.#landedOf(granted);
    await this.#store?.commit();
    const image = recordsOf(options);
    await publishMap(env, {
      ...{ image, uuid: idBytes(uuid), sizeBytes, clusterBytes, sourceIdentity: granted.identity, term: granted.term },
      fill: (bits, first, count) => landed?.fillClusters({ bits, first, count }, clusterBytes),
    });
    this.#identity = granted.identity;
    return landed !== undefined;
  }

  /** What `publish` has published becomes an overlay. Nobody uses it yet. */
  async openPublished(): Promise<void> {
    await this.#openOverlay(true, async (state) => this.#store ?? (await this.#openStore(state)));
  }

  /** After a restart: the map is there. Throws `OverlayRefusedError` or `ImageOpenError`. */
  async reopen(): Promise<void> {
    const { uuid } = this.entry;
    const records = recordsOf(this.#parts.options);
    const map = await peekMap(this.#parts.env, records);
    this.#identity = typeof map === "object" ? map.sourceIdentity : "";
    if (typeof map === "object" && Buffer.from(map.uuid).toString("hex") !== uuid) {
      const hint = "restore the image, its map and the records together";
      throw new MigrationError("bad-record", `${mapPath(records)} is not the map that was activated`, hint);
    }
    await this.#openOverlay(false, (state) => this.#openStore(state));
    this.#guest = this.#newGuest(this.#overlay?.capabilities);
  }

  /** The record says that this host is the owner: the guest may use the disk, and the rest is fetched. */
  activate(wrote: boolean): void {
    const { env, leisure } = this.#parts;
    if (this.#overlay === undefined || this.#sources === undefined) throw new Error("the disk is not prepared");
    const allowed = this.#allowedRate;
    const rate = allowed === undefined ? {} : { rate: allowed };
    this.#pull = startPull(env, {
      target: this.#overlay,
      sources: this.#sources,
      orders: [this.#heat],
      begin: leisure,
      ...rate,
    });
    if (this.#paused) this.#pull.hydrator.pause();
    this.guest.activate(this.#pull.guest, wrote);
  }

  /** What the source's guest used most. Throws `MigrationProtocolError`; then the order stays as it is. */
  learnHeat(heat: HeatMessage): void {
    this.#heat.learn(heat, this.entry);
  }

  /** Nothing will be fetched in the background: it is not to come between the sessions of another round. */
  endBackground(): void {
    this.#closeLater(this.#background?.close());
  }

  /** Everything is here: the source's sessions are not needed any more. */
  letSourceGo(): void {
    this.endBackground();
    this.#closeLater(this.#demand.close());
  }

  pause(): void {
    this.#paused = true;
    this.#round?.precopy?.pause();
    this.#pull?.hydrator.pause();
  }

  resume(): void {
    this.#paused = false;
    this.#round?.precopy?.resume();
    this.#pull?.hydrator.resume();
  }

  setRate(bytesPerSecond: number | undefined): void {
    this.#rate = bytesPerSecond;
    this.#applyRate();
  }

  /** The source's own limit, which counts beside ours. */
  setSourceRate(bytesPerSecond: number | undefined): void {
    if (bytesPerSecond === this.#sourceRate) return;
    this.#sourceRate = bytesPerSecond;
    this.#applyRate();
  }

  status(): DestinationDiskStatus {
    const { landed, precopy } = this.#round ?? {};
    const active = this.#pull !== undefined;
    return {
      ...{ name: this.name, sizeBytes: this.entry.sizeBytes },
      pulledBytes: active ? 0 : (landed?.bytes ?? 0),
      pulledAgainBytes: this.#pulledAgainBytes + (active ? 0 : (precopy?.pulledAgainBytes ?? 0)),
      hydration: this.#pull?.hydrator.progress(),
      stalls: this.#pull?.guest.stalls(),
      heat: active ? this.#heat.status : undefined,
      guestWrote: this.#guest?.wrote ?? false,
    };
  }

  /** Makes durable what is here, and closes everything. The guest's device fails from now on. */
  async close(): Promise<void> {
    this.#guest?.shut();
    await this.endRound();
    await this.#pull?.hydrator[Symbol.asyncDispose]();
    this.letSourceGo();
    await Promise.all(this.#closing);
    if (this.#overlay === undefined) await this.#store?.close();
    else {
      // What guests have flushed is durable; of the rest, whoever ends the process should know.
      await this.#overlay.commit().catch((error: unknown) => {
        this.#parts.log.warn(`what was last written to ${this.name} may be lost: ${messageOf(error)}`);
      });
      await this.#overlay.close();
    }
    this.#store = undefined;
    this.#overlay = undefined;
    this.#pull = undefined;
  }

  get #allowedRate(): number | undefined {
    const least = Math.min(this.#rate ?? Number.POSITIVE_INFINITY, this.#sourceRate ?? Number.POSITIVE_INFINITY);
    return Number.isFinite(least) ? least : undefined;
  }

  #applyRate(): void {
    this.#limiter.setRate(this.#allowedRate);
    this.#pull?.hydrator.setRate(this.#allowedRate);
  }

  /** The grains that count; undefined: none do. */
  #landedOf({ trackingId, count, checksum }: Granted): GrainSet | undefined {
    const round = this.#round;
    if (round === undefined) return undefined;
    const { chaos } = this.#parts.env;
    const { landed, clean } = round;
    const known = trackingId === round.trackingId && count === clean.count && checksum === clean.checksum();
    if (!known && !chaos.on("migrate/tracking-ignored")) return undefined;
    if (!chaos.on("migrate/active-before-dirty-set")) landed.intersect(clean);
    return landed;
  }

  #precopy(source: ReconnectingSource, landed: GrainSet, clean: GrainSet): Precopy {
    const { env, sync, onProgress } = this.#parts;
    if (this.#store === undefined) throw new Error("there is no store to pull to");
    const { background, window } = paceSources(env, this.#demand, source);
    const precopy = new Precopy({
      ...{ env, source: background, pace: window, limiter: this.#limiter, store: this.#store },
      ...{ landed, clean, sync, onProgress },
    });
    if (this.#paused) precopy.pause();
    return precopy;
  }

  #openStore(state: MapState): Promise<OverlayStore> {
    const { sizeBytes, clusterBytes, uuid } = this.entry;
    return this.#parts.options.format.open({ sizeBytes, uuid: idBytes(uuid), clusterBytes, state });
  }

  async #openOverlay(published: boolean, open: (state: MapState) => Promise<OverlayStore>): Promise<void> {
    const { env, bootId } = this.#parts;
    // Two sessions at a time would share what the link has of windows, and each keeps its share.
    const begin = this.#parts.leisure.then(() => this.#roundClosed).catch(() => undefined);
    this.#background = this.#newSource("pull", "stall", begin);
    this.#sources = paceSources(env, this.#demand, this.#background);
    const { demand: backing, ahead, background } = this.#sources;
    const path = recordsOf(this.#parts.options);
    const openStore = ({ state }: { state: MapState }): Promise<OverlayStore> => open(state);
    this.#overlay = await openOverlay(env, { path, backing, ahead, background, bootId, published, openStore });
  }

  #newGuest(capabilities: BlockDevice["capabilities"] | undefined): ExportDevice {
    if (capabilities === undefined) throw new Error("the disk is not set up");
    const early = this.#parts.earlyReads === "passthrough" ? { early: this.#demand } : { early: undefined };
    const { noteWrite } = this.#parts;
    return new ExportDevice({
      ...{ sizeBytes: this.entry.sizeBytes, capabilities: { ...capabilities, extents: true }, noteWrite },
      ...early,
    });
  }

  /** `begin`: it does not connect before. */
  #newSource(kind: "read" | "pull", onLoss: "stall" | "eio", begin?: Promise<unknown>): ReconnectingSource {
    const { env, connect, lossDeadlineMs } = this.#parts;
    const { clock, random, chaos } = env;
    return new ReconnectingSource({
      ...{ clock, random, chaos, onLoss },
      ...(lossDeadlineMs !== undefined && { lossDeadlineMs }),
      connect: async (signal) => {
        await begin;
        return await connect(kind, this.name, signal);
      },
      expected: { sizeBytes: this.entry.sizeBytes, identity: "" },
      verify: (session) => this.#verify(session),
    });
  }

  /** While a guest changes the disk it has no lasting looks; once frozen, it has. */
  async #verify(session: SourceSession): Promise<void> {
    const expected = this.#identity;
    if (expected === undefined) return;
    if (compareSources(expected, await identifySource(session)) === "other") {
      throw new SourceMismatchError(`another disk answers for ${this.name}`);
    }
  }

  #closeLater(closing: Promise<unknown> | undefined): void {
    if (closing === undefined) return;
    const job = closing.catch(() => undefined).finally(() => this.#closing.delete(job));
    this.#closing.add(job);
  }
}
