import { spawnSync } from "node:child_process";
import { cpSync, readdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { describe, expect, test, vi } from "vitest";
import { probeCapabilities } from "../../../src/os/capabilities.ts";
import { realClock } from "../../../src/os/clock.ts";
import { loadNative } from "../../../src/os/native.ts";
import { realRandom } from "../../../src/os/random.ts";
import { createRealEnv } from "../../../src/os/real-env.ts";
import { tempDir } from "../../support/temp-dir.ts";
import { native, PLACES, WITH_NATIVE, WITHOUT_NATIVE } from "./places.ts";

describe("the clock", () => {
  test("never goes back, and knows the date", () => {
    let last = realClock.nowMs();
    for (let i = 0; i < 1_000; i++) {
      const now = realClock.nowMs();
      expect(now).toBeGreaterThanOrEqual(last);
      last = now;
    }
    expect(Math.abs(realClock.wallMs() - Date.now())).toBeLessThan(1_000);
  });

  test("fires once, after the delay", async () => {
    const start = realClock.nowMs();
    await new Promise<void>((resolve) => realClock.setTimer(20, resolve));
    expect(realClock.nowMs() - start).toBeGreaterThan(18);
  });

  test("fires a timer neither after it was cancelled nor early, however long it is", () => {
    vi.useFakeTimers();
    try {
      const fired: string[] = [];
      const weeksMs = 40 * 24 * 3_600_000;
      realClock.setTimer(weeksMs, () => fired.push("long"));
      const cancelled = realClock.setTimer(weeksMs, () => fired.push("cancelled"));
      vi.advanceTimersByTime(weeksMs - 1_000);
      cancelled.cancel();
      cancelled.cancel();
      expect(fired).toEqual([]);
      vi.advanceTimersByTime(1_000);
      expect(fired).toEqual(["long"]);
    } finally {
      vi.useRealTimers();
    }
  });
});

describe("randomness", () => {
  test("fills more than one call of the system gives", () => {
    const bytes = new Uint8Array(200_000);
    realRandom.fill(bytes);
    const counts = new Uint32Array(256);
    for (const byte of bytes) counts[byte] = (counts[byte] ?? 0) + 1;
    expect(Math.min(...counts)).toBeGreaterThan(500);
    expect(bytes.subarray(-1_000).some((byte) => byte !== 0)).toBe(true);
    for (let i = 0; i < 100; i++) expect(realRandom.next()).toBeLessThan(1);
  });
});

describe("native calls", () => {
  test("are off when they are switched off, and say so", () => {
    expect(loadNative({ disabled: true })).toEqual({ state: "off", reason: "switched off by BLOCKFERRY_NO_NATIVE=1" });
  });

  test("are off when koffi is not installed, and everything else works", () => {
    using folder = tempDir();
    const sources = fileURLToPath(new URL("../../../src/", import.meta.url));
    for (const room of ["env", "util", "os"])
      cpSync(join(sources, room), folder.file(`src/${room}`), { recursive: true });
    writeFileSync(folder.file("image"), "");
    writeFileSync(
      folder.file("try.ts"),
      `import { RealFiles } from "./src/os/files.ts";
       import { loadNative } from "./src/os/native.ts";
       console.log(JSON.stringify(loadNative({ disabled: false })));
       const file = await new RealFiles().open({ path: process.argv[2]!, writable: true });
       await file.lock("exclusive");
       await file.write(0, new Uint8Array([7, 8, 9]));
       await file.dataSync();
       console.log(await file.read(1, new Uint8Array(9)), file.readNow(0, new Uint8Array(1)));
       await file.close();`,
    );
    const { stdout, stderr } = spawnSync(process.execPath, [folder.file("try.ts"), folder.file("image")], {
      encoding: "utf8",
    });
    expect(stderr).toBe("");
    const [native = "", result] = stdout.split("\n");
    expect(JSON.parse(native)).toEqual({ state: "off", reason: "koffi does not load: Cannot find module 'koffi'" });
    expect(result).toBe("2 -1");
  });

  test("bind what the C library has, and nothing else", () => {
    expect(native().bind("getpid", "int", [])?.()).toBe(process.pid);
    expect(native().bind("no_such_function", "int", [])).toBeUndefined();
  });

  test("the real Env can be made with them and without them", () => {
    for (const result of [WITH_NATIVE, WITHOUT_NATIVE]) {
      const env = createRealEnv(result);
      expect(env.chaos.on("anything")).toBe(false);
      expect(env.clock).toBe(realClock);
    }
  });
});

describe("capabilities", () => {
  for (const place of PLACES) {
    test(`of ${place.name} are found out by trying, and leave nothing behind`, async () => {
      using folder = tempDir(place.directory);
      const found = await probeCapabilities(folder.path, WITH_NATIVE);
      const state = (word: string) => found.find(({ name }) => name.includes(word))?.state;
      expect(state("native calls")).toBe("native");
      expect(state("PUNCH_HOLE")).toBe("native");
      expect(state("SEEK_DATA")).toBe("native");
      expect(state("OFD")).toBe("native");
      expect(state("flock")).toBe("native");
      if (!place.inMemory) expect(state("ZERO_RANGE")).toBe("native");
      expect(readdirSync(folder.path)).toEqual([]);
    });
  }

  test("without native calls are what is left, and each says why", async () => {
    using folder = tempDir();
    const found = await probeCapabilities(folder.path, WITHOUT_NATIVE);
    const byTheKernel = found.filter(({ state }) => state === "native").map(({ name }) => name);
    expect(byTheKernel).toEqual(["writes on the event loop's thread"]);
    for (const { state, detail } of found) if (state !== "native") expect(detail).toMatch(/native/i);
  });

  test("need a directory that can be written to", async () => {
    const probed = probeCapabilities("/proc/self/no-such-place");
    await expect(probed).rejects.toMatchObject({ name: "FileError", code: "ENOENT" });
  });
});
