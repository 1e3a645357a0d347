/**
 * Puts a pull together: demand and background sessions with a source, the window that the background shares, read-ahead
 * before guests, and hydration. The overlay comes in between: it is opened with the sources that `paceSources` gives, and
 * handed to `startPull`.
 */
import type { Env } from "../env/env.ts";
import { DemandSource } from "./demand-source.ts";
import { GuestDevice, type GuestTarget } from "./guest-device.ts";
import type { HydrationTarget } from "./hydration-parts.ts";
import { Hydrator } from "./hydrator.ts";
import type { Order } from "./order.ts";
import { PacedSource } from "./paced-source.ts";
import { ReadAhead, type ReadAheadTarget } from "./read-ahead.ts";
import { SendWindow } from "./send-window.ts";
import type { StreamSource } from "./wrapped-source.ts";

type PullEnv = Pick<Env, "clock" | "chaos">;

export interface PacedSources {
  /** What guests wait for. */
  readonly demand: DemandSource;
  /** What they will want. */
  readonly ahead: PacedSource;
  /** The rest. */
  readonly background: PacedSource;
  readonly window: SendWindow;
}

/** The two sources stay the caller's. */
export function paceSources({ clock, chaos }: PullEnv, demand: StreamSource, background: StreamSource): PacedSources {
  const watched = new DemandSource(demand, clock);
  const window = new SendWindow(clock, chaos, watched);
  watched.learnFrom(window.control);
  return {
    demand: watched,
    ahead: new PacedSource(background, window, "read-ahead"),
    background: new PacedSource(background, window, "hydration"),
    window,
  };
}

/** `Overlay` is one. */
export interface PullTarget extends GuestTarget, HydrationTarget, ReadAheadTarget {
  setDemandUnit(unitBytesAt: (offset: number) => number): void;
}

export interface PullOptions {
  /** Stays the caller's, as do the sources. */
  readonly target: PullTarget;
  readonly sources: PacedSources;
  /** Bytes per second in the background; undefined: no limit. */
  readonly rate?: number;
  /** Bytes of a fixed window; undefined: it follows the path. */
  readonly windowBytes?: number;
  readonly orders?: readonly Order[];
  /** Hydration does not begin before this resolves. */
  readonly begin?: Promise<void>;
  /** Told of each read of a guest until everything is local. */
  readonly onRead?: (offset: number, length: number, missing: boolean) => void;
}

export interface Pull {
  /** The target, as guests are to use it. */
  readonly guest: GuestDevice;
  readonly hydrator: Hydrator;
  readonly readAhead: ReadAhead;
}

/** To be closed by closing the hydrator; the target later. */
export function startPull({ clock, chaos }: PullEnv, options: PullOptions): Pull {
  const { target, sources, rate, windowBytes, orders, begin, onRead } = options;
  const { window, demand, background } = sources;
  if (windowBytes !== undefined) window.fix(windowBytes);
  const demandReads = (): number => demand.underWay;
  const readAhead = new ReadAhead({ clock, target, path: window.control, demandReads });
  target.setDemandUnit((offset) => readAhead.demandUnit(offset));
  const guest = new GuestDevice(target, clock, {
    onMissing: (offset, length) => window.hurry(offset, length),
    onRead: (offset, length, missing) => {
      readAhead.noteRead(offset, length, missing);
      onRead?.(offset, length, missing);
    },
  });
  const hydrator = new Hydrator({
    ...{ clock, chaos, target, source: background, pace: window },
    avoid: (range) => readAhead.avoid(range),
    ...(rate !== undefined && { rate }),
    ...(orders !== undefined && { orders }),
    ...(begin !== undefined && { begin }),
  });
  hydrator.onState((state) => {
    if (state === "complete") guest.stopWatching();
  });
  return { guest, hydrator, readAhead };
}
