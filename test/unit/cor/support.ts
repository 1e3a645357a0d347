/** An overlay on raw files in memory, over a backing that can be held. */

import type { BlockDevice } from "../../../src/block/device.ts";
import { MemoryDevice } from "../../../src/block/memory.ts";
import type { CorChaosPoint } from "../../../src/cor/chaos-points.ts";
import type { Overlay } from "../../../src/cor/overlay.ts";
import { createOverlay, openOverlay } from "../../../src/cor/overlay-files.ts";
import type { Clock } from "../../../src/env/clock.ts";
import type { Files } from "../../../src/env/files.ts";
import { createRawOverlay, openRawOverlay } from "../../../src/image/raw-overlay.ts";
import { FakeFiles } from "../../support/fake-files.ts";
import { pattern } from "../../support/patterns.ts";
import { Prng } from "../../support/seed.ts";

export const IMAGE = "/vm/disk.raw";
export const CLUSTER = 4096;

/** Time passes when it is told to. */
export class HandClock implements Clock {
  #now = 0;
  readonly #timers = new Map<object, { readonly at: number; readonly fire: () => void }>();

  get timers(): number {
    return this.#timers.size;
  }

  nowMs(): number {
    return this.#now;
  }

  wallMs(): number {
    return this.#now;
  }

  setTimer(delayMs: number, fire: () => void): { cancel: () => void } {
    const timer = { cancel: () => void this.#timers.delete(timer) };
    this.#timers.set(timer, { at: this.#now + delayMs, fire });
    return timer;
  }

  pass(ms: number): void {
    this.#now += ms;
    for (const [timer, { at, fire }] of [...this.#timers]) {
      if (at <= this.#now && this.#timers.delete(timer)) fire();
    }
  }
}

export interface World {
  readonly files: Files;
  readonly clock: Clock;
  readonly random: { next(): number; fill(into: Uint8Array): void };
  readonly chaos: { on(point: string): boolean };
}

export function world(files: Files, ...mutants: CorChaosPoint[]): World {
  const rng = new Prng(7, "overlay");
  const random = { next: () => rng.float(), fill: (into: Uint8Array) => rng.fill(into) };
  return {
    files,
    random,
    clock: new HandClock(),
    chaos: { on: (point) => mutants.some((mutant) => mutant === point) },
  };
}

export async function create(env: World, sizeBytes: number, clusterBytes = CLUSTER): Promise<void> {
  const createImage = (uuid: Uint8Array, begun: boolean) =>
    createRawOverlay(env, { path: IMAGE, sizeBytes, uuid, begun });
  await createOverlay(env, { path: IMAGE, sizeBytes, clusterBytes, sourceIdentity: "disk A", createImage });
}

export interface OpenWish {
  readonly backing: BlockDevice;
  readonly background?: BlockDevice;
  readonly bootId?: string;
  readonly fetchUnitBytes?: number;
  readonly logHalfRecords?: number;
}

export function open(env: World, { bootId = "boot 1", ...wish }: OpenWish): Promise<Overlay> {
  return openOverlay(env, {
    path: IMAGE,
    sourceIdentity: "disk A",
    bootId,
    ...wish,
    openStore: ({ sizeBytes, uuid, clusterBytes, state }) =>
      openRawOverlay(env, { path: IMAGE, sizeBytes, uuid, clusterBytes, state }),
  });
}

export function memory(content: Uint8Array): MemoryDevice {
  return new MemoryDevice({ sizeBytes: content.length, content });
}

/** What the backing of `begun` holds. */
export const BACKING = pattern(0, 16 * CLUSTER, 1);

/** A new overlay of 16 clusters over `BACKING`, whose intent log has halves of `logHalfRecords`. */
export async function begun(logHalfRecords: number, ...mutants: CorChaosPoint[]) {
  const files = new FakeFiles();
  const env = world(files, ...mutants);
  await create(env, BACKING.length);
  const backing = memory(BACKING);
  const overlay = await open(env, { backing, logHalfRecords });
  return { files, env, backing, overlay };
}

/** The process is gone: its locks are, and the page cache is not. */
export function kill(files: FakeFiles): void {
  for (const disk of files.disks.values()) disk.holders.clear();
}

export function losePower(files: FakeFiles): void {
  for (const disk of files.disks.values()) disk.losePower();
}

/** Whether the cluster at `offset` is as it is in a pattern of `salt`. */
export async function holds(device: BlockDevice, offset: number, salt: number): Promise<boolean> {
  return Buffer.from(await readAll(device, offset, CLUSTER)).equals(pattern(offset, CLUSTER, salt));
}

export async function readAll(device: BlockDevice, offset: number, length: number): Promise<Uint8Array> {
  const into = new Uint8Array(length);
  await device.read(offset, into);
  return into;
}
