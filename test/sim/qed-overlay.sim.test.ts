/** QED images as the stores of overlays: the histories of an overlay, and the tables looked at after every crash. */
import { test } from "vitest";
import { QED_CHAOS_POINTS, QED_OVERLAY_CHAOS_POINTS } from "../../src/image/qed/chaos-points.ts";
import { drawn } from "../support/seed.ts";
import { itCatches, itSurvivesCrashes, tableOverlays } from "./overlay-bulk.ts";
import { overlayHistory } from "./overlay-history.ts";

const OVERLAYS = tableOverlays("qed");
/** Histories that have failed, and what had been wrong. */
const ONCE_FAILED: readonly [seed: number, what: string][] = [
  [277_247_912, "the power went while the mark of an unfinished image went, and what was left of that was refused"],
];

itSurvivesCrashes(1, OVERLAYS);

for (const [seed, what] of ONCE_FAILED) {
  test(`history ${seed} passes, which had failed because ${what}`, async () => {
    await overlayHistory(seed, [], OVERLAYS.name);
  });
}

for (const [point, what] of drawn(Object.entries(QED_OVERLAY_CHAOS_POINTS), 1)) {
  itCatches(OVERLAYS, point, what, point === "qed/rewrite-skipped" ? 0.5 : undefined);
}
for (const point of ["qed/cluster-unlocked"] as const) itCatches(OVERLAYS, point, QED_CHAOS_POINTS[point]);
