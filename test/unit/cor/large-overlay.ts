/**
 * Run as a process of its own, so that its memory is its own: makes an overlay as large as the file system takes, whose
 * map has every other cluster of 64 GiB, opens it, makes holes local, and tells what that took as JSON.
 */
import { MemoryDevice } from "../../../src/block/memory.ts";
import { encodePage, PAGE_BITS_BYTES, PAGE_BYTES, PAGE_CLUSTERS, SLOTS_OFFSET } from "../../../src/cor/map-format.ts";
import type { Overlay } from "../../../src/cor/overlay.ts";
import { createOverlay, mapPath, openOverlay } from "../../../src/cor/overlay-files.ts";
import { createRawOverlay, openRawOverlay } from "../../../src/image/raw-overlay.ts";
import { createRealEnv } from "../../../src/os/real-env.ts";

const GiB = 2 ** 30;
const TiB = 2 ** 40;
const CLUSTER = 4096;
/** ext4 with 4 KiB blocks ends one block before 16 TiB. */
const SIZES = [16 * TiB, 16 * TiB - 2 ** 20, TiB];
const ALTERNATING = (64 * GiB) / CLUSTER;
const HOLE = (100 * GiB) / CLUSTER;

const env = createRealEnv();
const path = `${process.argv[2] ?? "."}/disk.raw`;

async function make(): Promise<number> {
  for (const sizeBytes of SIZES) {
    const createImage = (uuid: Uint8Array, begun: boolean): Promise<void> =>
      createRawOverlay(env, { path, sizeBytes, uuid, begun });
    try {
      await createOverlay(env, { path, sizeBytes, clusterBytes: CLUSTER, sourceIdentity: "", createImage });
      return sizeBytes;
    } catch {
      // Too large for this file system.
    }
  }
  throw new Error("no size fits");
}

async function alternate(): Promise<void> {
  await using file = await env.files.open({ path: mapPath(path), writable: true });
  const bits = new Uint8Array(PAGE_BITS_BYTES).fill(0xaa);
  for (let page = 0; (page + 1) * PAGE_CLUSTERS <= ALTERNATING; page++) {
    await file.write(SLOTS_OFFSET + page * PAGE_BYTES, encodePage(bits, page, 1));
  }
}

async function timed(work: () => Promise<unknown>): Promise<number> {
  const startMs = performance.now();
  await work();
  return Math.round(performance.now() - startMs);
}

const sizeBytes = await make();
await alternate();
const backing = new MemoryDevice({ sizeBytes });
let overlay: Overlay | undefined;
const openMs = await timed(async () => {
  overlay = await openOverlay(env, {
    ...{ path, backing, bootId: "boot 1" },
    openStore: ({ uuid, clusterBytes, state }) => openRawOverlay(env, { path, sizeBytes, uuid, clusterBytes, state }),
  });
});
if (overlay === undefined) throw new Error("not open");
const opened = overlay;
const localAtOpen = opened.localClusters;
const holeMs = await timed(() => opened.zeroBackground({ first: 2 * ALTERNATING, count: HOLE }));
const localAfterHole = opened.localClusters - localAtOpen;
const openRssBytes = process.memoryUsage.rss();
const restMs = await timed(() => opened.zeroBackground({ first: ALTERNATING, count: opened.clusters }));
const missing = opened.clusters - opened.localClusters;
await opened.flush();
const rssBytes = process.resourceUsage().maxRSS * 1024;
await opened.close();
process.stdout.write(
  JSON.stringify({ sizeBytes, openMs, holeMs, restMs, localAtOpen, localAfterHole, missing, openRssBytes, rssBytes }),
);
