/**
 * A disk that fails to sync, once: that flush fails and every later one, whatever the disk says then, until a restart;
 * and the restart finds every flush that was acknowledged. `strace` makes the running process's next `fdatasync` fail.
 */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { expect } from "vitest";
import { bytesOf, diskOf, placeIn } from "../../support/clone-checks.ts";
import { type CloneProcess, startClone, WITHOUT_LAUNCHER } from "../../support/clone-process.ts";
import { pattern } from "../../support/patterns.ts";
import { nbdkit } from "../../support/peers.ts";
import { tempDir } from "../../support/temp-dir.ts";
import { itWith } from "../../support/tools.ts";

const MiB = 2 ** 20;
const SIZE = 8 * MiB;

/** While `work` runs, the first `fdatasync` of each of the process's threads fails with EIO. */
async function whileSyncFails(clone: CloneProcess, work: () => Promise<void>): Promise<void> {
  const inject = "inject=fdatasync:error=EIO:when=1";
  const args = ["-f", "-o", "/dev/null", "-e", "trace=fdatasync", "-e", inject, "-p", String(clone.pid)];
  const strace = spawn("strace", args, { stdio: ["ignore", "ignore", "pipe"] });
  const ended = once(strace, "exit");
  try {
    await once(strace.stderr, "data");
    await work();
  } finally {
    strace.kill("SIGINT");
    await ended;
  }
}

itWith(
  ["strace", "nbdkit"],
  "one failed sync fails that flush and all later ones until a restart, which loses nothing",
  async () => {
    await using source = await nbdkit("pattern", String(SIZE));
    using folder = tempDir();
    const place = placeIn(folder, source);
    const flushed = pattern(MiB, 64 * 1024, 41);
    {
      // One thread that syncs.
      const env = { UV_THREADPOOL_SIZE: "1" };
      await using clone = await startClone({ ...place, flags: ["--rate=64K"], env, program: WITHOUT_LAUNCHER });
      await clone.call("pause", {});
      await using client = await clone.open();
      await client.write(MiB, flushed);
      await client.write(MiB + 100, flushed.subarray(100, 200), { fua: true });
      await client.flush();
      await client.write(2 * MiB, pattern(2 * MiB, 4096, 42));
      await whileSyncFails(clone, async () => {
        await expect(client.flush()).rejects.toMatchObject({ code: "io" });
      });
      // The disk is well again, and what it lost nobody knows.
      await expect(client.flush()).rejects.toMatchObject({ code: "io" });
      await expect(client.write(3 * MiB, pattern(0, 4096))).rejects.toMatchObject({ code: "io" });
      await expect(client.write(MiB, pattern(0, 512), { fua: true })).rejects.toMatchObject({ code: "io" });
      await expect(client.writeZeroes(MiB, 4096)).rejects.toMatchObject({ code: "io" });
      await using second = await clone.open();
      await expect(second.flush()).rejects.toMatchObject({ code: "io" });
      expect((await bytesOf(second, MiB, flushed.length)).equals(flushed)).toBe(true);
      expect((await bytesOf(second, 4 * MiB, 8)).readBigUInt64BE()).toBe(BigInt(4 * MiB));
      await client.close().catch(() => undefined);
      await second.close().catch(() => undefined);
      expect(await clone.stop(), clone.output).toBe(74);
    }
    await using clone = await startClone(place);
    await using client = await clone.open();
    expect((await bytesOf(client, MiB, flushed.length)).equals(flushed)).toBe(true);
    await client.flush();
    // Written over what was not acknowledged: it takes writes and syncs again.
    await client.write(2 * MiB, pattern(2 * MiB, 4096, 43));
    await client.flush();
    await clone.hydrated();
    expect((await bytesOf(client, MiB, flushed.length)).equals(flushed)).toBe(true);
    expect((await bytesOf(client, 3 * MiB, 8)).readBigUInt64BE()).toBe(BigInt(3 * MiB));
  },
);

itWith(
  ["strace", "nbdkit"],
  "a sync that fails while nothing but hydration goes on ends that, and a restart goes on",
  async () => {
    await using source = await nbdkit("pattern", String(SIZE));
    using folder = tempDir();
    const place = placeIn(folder, source);
    {
      const env = { UV_THREADPOOL_SIZE: "1" };
      await using clone = await startClone({ ...place, flags: ["--rate=64K"], env, program: WITHOUT_LAUNCHER });
      await whileSyncFails(clone, async () => {
        await clone.call("set-speed", { bytesPerSecond: null });
        await expect.poll(async () => (await diskOf(clone)).hydration?.state, { timeout: 20_000 }).toBe("failed");
      });
      expect((await clone.status()).state).toBe("failed");
      expect((await clone.status()).next).toContain("kernel log");
      expect(await clone.stop(), clone.output).toBe(74);
    }
    await using clone = await startClone(place);
    await clone.hydrated();
    await using client = await clone.open();
    const bytes = await bytesOf(client, 0, SIZE);
    for (let at = 0; at < SIZE; at += 4096) expect(bytes.readBigUInt64BE(at)).toBe(BigInt(at));
  },
);
