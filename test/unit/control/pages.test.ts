/** `map` and `missing` in pages: what they say together is what the disk says, however many runs there are. */
import { describe, expect, test } from "vitest";
import { ControlError } from "../../../src/control/errors.ts";
import { encodeMessage } from "../../../src/control/frame.ts";
import { RUNS_PER_PAGE_MAX } from "../../../src/control/limits.ts";
import { type ByteRun, chooseDisk, mapPage, missingPage, type PresenceSource } from "../../../src/control/pages.ts";
import { VERBS } from "../../../src/control/verbs.ts";
import { counts, itSeeded, type Prng } from "../../support/seed.ts";

/** Runs as a disk tells them: whole ones, also when asked from within one. */
function diskOf(missing: readonly ByteRun[], sizeBytes: number): PresenceSource {
  return {
    name: "vda",
    sizeBytes,
    *missing(offset) {
      yield* missing.filter((run) => run.offset + run.length > offset);
    },
  };
}

async function wholeMap(disk: PresenceSource): Promise<[number, number, number][]> {
  const runs: [number, number, number][] = [];
  for (let cursor: number | null = 0; cursor !== null; ) {
    const page: Awaited<ReturnType<typeof mapPage>> = await mapPage(disk, cursor);
    expect(VERBS.map.result.safeParse(page).success).toBe(true);
    runs.push(...page.runs);
    cursor = page.next;
  }
  return runs;
}

async function wholeMissing(disk: PresenceSource): Promise<[number, number][]> {
  const runs: [number, number][] = [];
  for (let cursor: number | null = 0; cursor !== null; ) {
    const page: Awaited<ReturnType<typeof missingPage>> = await missingPage(disk, cursor);
    expect(VERBS.missing.result.safeParse(page).success).toBe(true);
    runs.push(...page.runs);
    cursor = page.next;
  }
  return runs;
}

function randomRuns(rng: Prng, sizeBytes: number): ByteRun[] {
  const runs: ByteRun[] = [];
  // Neighbours may touch, as pages of a presence map do.
  for (let at = rng.integer(0, 3); at < sizeBytes; at += rng.integer(0, 3)) {
    const length = Math.min(rng.integer(1, 5), sizeBytes - at);
    runs.push({ offset: at, length });
    at += length;
  }
  return runs;
}

describe("pages", () => {
  itSeeded("together say of every byte what the disk says, without gaps", async (rng) => {
    for (let round = 0; round < counts({ local: 100, ci: 1000 }); round++) {
      const sizeBytes = rng.chance(0.2) ? rng.integer(0, 20_000) : rng.integer(0, 40);
      const missing = randomRuns(rng, sizeBytes);
      const expected = new Uint8Array(sizeBytes);
      for (const { offset, length } of missing) expected.fill(1, offset, offset + length);
      const disk = diskOf(missing, sizeBytes);
      const seen = new Uint8Array(sizeBytes).fill(9);
      let end = 0;
      for (const [offset, length, type] of await wholeMap(disk)) {
        expect(offset).toBe(end);
        expect(length).toBeGreaterThan(0);
        seen.fill(type, offset, offset + length);
        end = offset + length;
      }
      expect(end).toBe(sizeBytes);
      expect(seen).toEqual(expected);
      const seenMissing = new Uint8Array(sizeBytes);
      for (const [offset, length] of await wholeMissing(disk)) seenMissing.fill(1, offset, offset + length);
      expect(seenMissing).toEqual(expected);
    }
  });

  test("a page that is just full leaves what is local behind it to the next one", async () => {
    const runs = RUNS_PER_PAGE_MAX / 2;
    const missing = Array.from({ length: runs }, (_, i) => ({ offset: 2 * i + 1, length: 1 }));
    for (const sizeBytes of [2 * runs, 2 * runs + 1]) {
      const map = await wholeMap(diskOf(missing, sizeBytes));
      expect(map).toHaveLength(sizeBytes);
      expect(map.at(-1)).toEqual([sizeBytes - 1, 1, sizeBytes === 2 * runs ? 1 : 0]);
    }
  });

  test("the largest page fits a message, at the largest offsets", async () => {
    const start = 2 ** 53 - 4 * RUNS_PER_PAGE_MAX * 2 ** 33;
    const far = Array.from({ length: 2 * RUNS_PER_PAGE_MAX }, (_, i) => ({
      offset: start + i * 2 ** 34,
      length: 2 ** 33 + 1,
    }));
    const disk = { ...diskOf(far, Number.MAX_SAFE_INTEGER), name: "x".repeat(255) };
    for (const page of [await mapPage(disk, start), await missingPage(disk, start)]) {
      expect(page.runs.length).toBeGreaterThanOrEqual(RUNS_PER_PAGE_MAX - 1);
      expect(page.next).not.toBeNull();
      expect(encodeMessage({ id: 0xffffffff, result: page }).length).toBeLessThan(64 * 1024);
    }
  });

  test("a cursor past the end gets an empty last page", async () => {
    const disk = diskOf([{ offset: 0, length: 10 }], 10);
    await expect(mapPage(disk, 11)).resolves.toMatchObject({ runs: [], next: null });
    await expect(missingPage(disk, 10)).resolves.toMatchObject({ runs: [], next: null });
  });
});

describe("which disk", () => {
  const vda = { name: "vda" };
  const vdb = { name: "vdb" };

  test("the only one needs no name", () => {
    expect(chooseDisk([vda], undefined)).toBe(vda);
    expect(chooseDisk([vda, vdb], "vdb")).toBe(vdb);
  });

  test.each<[(typeof vda)[], string | undefined, string]>([
    [[vda, vdb], undefined, "several-disks"],
    [[vda, vdb], "vd", "unknown-disk"],
    [[], undefined, "several-disks"],
  ])("%j, asked for %j: %s", (disks, name, code) => {
    expect(() => chooseDisk(disks, name)).toThrow(expect.objectContaining({ code, hint: expect.any(String) }));
    expect(() => chooseDisk(disks, name)).toThrow(ControlError);
  });
});
