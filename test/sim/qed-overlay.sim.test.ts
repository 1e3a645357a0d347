/** QED images as the stores of overlays: the histories of an overlay, and the tables looked at after every crash. */
import { QED_CHAOS_POINTS, QED_OVERLAY_CHAOS_POINTS } from "../../src/image/qed/chaos-points.ts";
import { drawn } from "../support/seed.ts";
import { itCatches, itSurvivesCrashes, tableOverlays } from "./overlay-bulk.ts";

const OVERLAYS = tableOverlays("qed");

itSurvivesCrashes(1, OVERLAYS);

for (const [point, what] of drawn(Object.entries(QED_OVERLAY_CHAOS_POINTS), 1)) {
  itCatches(OVERLAYS, point, what, point === "qed/rewrite-skipped" ? 0.5 : undefined);
}
for (const point of ["qed/cluster-unlocked"] as const) itCatches(OVERLAYS, point, QED_CHAOS_POINTS[point]);
