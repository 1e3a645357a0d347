import { describe, expect, it } from "vitest";
import type { CorChaosPoint } from "../../../src/cor/chaos-points.ts";
import { openIntentLog } from "../../../src/cor/intent-log.ts";
import { logPath } from "../../../src/cor/overlay-files.ts";
import { FakeFiles } from "../../support/fake-files.ts";
import { pattern } from "../../support/patterns.ts";
import { CLUSTER, create, IMAGE, memory, open, readAll, world } from "./support.ts";

const SIZE = 16 * CLUSTER;
const BACKING = pattern(0, SIZE, 1);

async function rig(...mutants: CorChaosPoint[]) {
  const files = new FakeFiles();
  const env = world(files, ...mutants);
  await create(env, SIZE);
  const backing = memory(BACKING);
  const overlay = await open(env, { backing, logHalfRecords: 4 });
  const kill = (): void => {
    for (const disk of files.disks.values()) disk.holders.clear();
  };
  const write = (cluster: number): Promise<void> =>
    overlay.write(cluster * CLUSTER, pattern(cluster * CLUSTER, CLUSTER, 2));
  return { files, env, backing, overlay, kill, write };
}

async function holds(device: Awaited<ReturnType<typeof open>>, cluster: number): Promise<boolean> {
  const found = Buffer.from(await readAll(device, cluster * CLUSTER, CLUSTER));
  return found.equals(pattern(cluster * CLUSTER, CLUSTER, 2));
}

describe("the intent log", () => {
  it("keeps its records while commits fail for want of space", async () => {
    for (const mutant of [undefined, "cor/log-half-too-early"] as const) {
      const { files, env, backing, overlay, kill, write } = await rig(...(mutant === undefined ? [] : [mutant]));
      await write(1);
      for (const cluster of [2, 3]) {
        files.inject({ operation: "write", code: "ENOSPC", times: 1 });
        await expect(overlay.flush()).rejects.toMatchObject({ code: "no-space" });
        files.clearFaults();
        await write(cluster);
      }
      kill();
      await using again = await open(env, { backing, logHalfRecords: 4 });
      const found = await Promise.all([1, 2, 3].map((cluster) => holds(again, cluster)));
      expect(found.every(Boolean)).toBe(mutant === undefined);
    }
  });

  it("is gone after data was lost, even where it cannot be written over", async () => {
    const { files, env, backing, overlay, kill, write } = await rig();
    await write(1);
    files.inject({ operation: "dataSync", code: "EIO", times: 1 });
    files.inject({ operation: "writeNow", code: "ENOSPC" });
    files.inject({ operation: "write", code: "ENOSPC" });
    await expect(overlay.flush()).rejects.toMatchObject({ code: "io" });
    await overlay.close();
    expect(files.disks.get(logPath(IMAGE))?.size).toBe(0);
    files.clearFaults();
    kill();
    await using again = await open(env, { backing, logHalfRecords: 4 });
    expect(await holds(again, 1)).toBe(false);
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
