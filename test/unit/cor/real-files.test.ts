import { mkdtemp, rm, stat } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, it } from "vitest";
import { createOverlay, openOverlay } from "../../../src/cor/overlay-files.ts";
import { createRawOverlay, openRawOverlay } from "../../../src/image/raw-overlay.ts";
import { createRealEnv } from "../../../src/os/real-env.ts";
import { pattern } from "../../support/patterns.ts";
import { memory } from "./support.ts";

it("works on files of this host: written, hydrated, opened again, completed", async () => {
  const folder = await mkdtemp(join(tmpdir(), "overlay-"));
  try {
    const env = createRealEnv();
    const path = join(folder, "disk.raw");
    const sizeBytes = 8 * 2 ** 20 + 512;
    const backing = memory(pattern(0, sizeBytes, 1));
    const createImage = (uuid: Uint8Array, begun: boolean) => createRawOverlay(env, { path, sizeBytes, uuid, begun });
    await createOverlay(env, { path, sizeBytes, sourceIdentity: "", createImage });
    const open = () =>
      openOverlay(env, {
        ...{ path, backing, bootId: "boot 1" },
        openStore: ({ uuid, clusterBytes, state }) =>
          openRawOverlay(env, { path, sizeBytes, uuid, clusterBytes, state }),
      });
    const overlay = await open();
    await overlay.write(5000, pattern(5000, 70_000, 2));
    await overlay.fetchBackground({ first: 100, count: 300 });
    await overlay.flush();
    await overlay.close();
    await using again = await open();
    expect(again.localClusters).toBeGreaterThan(300);
    await again.fetchBackground({ first: 0, count: again.clusters });
    await again.complete();
    const expected = pattern(0, sizeBytes, 1);
    pattern(5000, 70_000, 2).copy(expected, 5000);
    const found = Buffer.alloc(sizeBytes);
    await again.read(0, found);
    expect(found.equals(expected)).toBe(true);
    expect((await stat(path)).size).toBe(sizeBytes);
  } finally {
    await rm(folder, { recursive: true });
  }
});
