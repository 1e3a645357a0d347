import { describe, expect, it } from "vitest";
import type { BlockDevice } from "../../../src/block/device.ts";
import { openIntentLog } from "../../../src/cor/intent-log.ts";
import { logPath } from "../../../src/cor/overlay-files.ts";
import { FakeFiles } from "../../support/fake-files.ts";
import { pattern } from "../../support/patterns.ts";
import { begun, CLUSTER, holds, IMAGE, kill, open, world } from "./support.ts";

/** Records in a half of the log. */
const HALF = 4;

function writeTo(overlay: BlockDevice, cluster: number): Promise<void> {
  return overlay.write(cluster * CLUSTER, pattern(cluster * CLUSTER, CLUSTER, 2));
}

describe("the intent log", () => {
  it("keeps its records while commits fail for want of space", async () => {
    for (const mutant of [undefined, "cor/log-half-too-early"] as const) {
      const { files, env, backing, overlay } = await begun(HALF, ...(mutant === undefined ? [] : [mutant]));
      await writeTo(overlay, 1);
      for (const cluster of [2, 3]) {
        files.inject({ operation: "write", code: "ENOSPC", times: 1 });
        await expect(overlay.flush()).rejects.toMatchObject({ code: "no-space" });
        files.clearFaults();
        await writeTo(overlay, cluster);
      }
      kill(files);
      await using again = await open(env, { backing, logHalfRecords: HALF });
      const found = await Promise.all([1, 2, 3].map((cluster) => holds(again, cluster * CLUSTER, 2)));
      expect(found.every(Boolean)).toBe(mutant === undefined);
    }
  });

  it("is gone after data was lost, even where it cannot be written over", async () => {
    const { files, env, backing, overlay } = await begun(HALF);
    await writeTo(overlay, 1);
    files.inject({ operation: "dataSync", code: "EIO", times: 1 });
    files.inject({ operation: "writeNow", code: "ENOSPC" });
    files.inject({ operation: "write", code: "ENOSPC" });
    await expect(overlay.flush()).rejects.toMatchObject({ code: "io" });
    await overlay.close();
    expect(files.disks.get(logPath(IMAGE))?.size).toBe(0);
    files.clearFaults();
    kill(files);
    await using again = await open(env, { backing, logHalfRecords: HALF });
    expect(await holds(again, CLUSTER, 2)).toBe(false);
  });

  it("writes no record where one that is late may still land", async () => {
    const files = new FakeFiles();
    const env = world(files);
    const path = "/vm/disk.raw.log";
    const { log } = await openIntentLog(env, { path, uuid: new Uint8Array(16), bootId: "boot 1", halfRecords: 2 });
    const fileWrites = (): string[] => files.log.filter((line) => line.startsWith("write ") && line.endsWith("+16"));
    files.features = { ...files.features, readNow: false };
    const release = files.hold("write");
    const late = log.append(1, 1);
    for (let commit = 0; commit < 2; commit++) {
      log.sealed();
      log.settled();
    }
    const newer = log.append(2, 1);
    release();
    expect(await Promise.all([late, newer])).toEqual([true, true]);
    expect(new Set(fileWrites()).size).toBe(2);
    await log.close();
  });
});
