import { describe, expect, test } from "vitest";
import { hydrationStatus, nextStep, overallState, progressOf } from "../../../src/cli/clone/status.ts";
import { progressLine } from "../../../src/cli/progress/format.ts";
import type { HydrationProgress } from "../../../src/stream/progress.ts";

const GiB = 2 ** 30;

const away: HydrationProgress = {
  ...{ state: "disconnected", forMs: 0, totalBytes: GiB, localBytes: 0, missingBytes: GiB, hydratedBytes: 0 },
  ...{ fetchedBytes: 0, zeroBytes: 0, bytesPerSecond: 0, elapsedMs: 0, fetchesUnderWay: 0, stalledBy: "source" },
  failed: { bytes: 0, ranges: [], unlisted: 0 },
};

describe("a clone without a connection to its source", () => {
  test("says that it is connecting, and asks nobody to do anything, until an attempt has failed", () => {
    const connecting: HydrationProgress = { ...away, stalledBy: "connecting" };
    expect(hydrationStatus(connecting).stalledReason).toBe("connecting to the source");
    expect(overallState(connecting)).toBe("starting");
    expect(nextStep(connecting, "connecting")).toBeNull();
    expect(progressLine(progressOf(connecting))).toMatch(/stalled: connecting to the source$/);
  });

  test("says that the source is away, and to bring it back, from then on", () => {
    expect(hydrationStatus(away).stalledReason).toBe("the source is away");
    expect(overallState(away)).toBe("stalled");
    expect(nextStep(away, "disconnected")).toContain("bring the source back");
  });
});
