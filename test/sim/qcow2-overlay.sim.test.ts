/** qcow2 images as the stores of overlays: the histories of an overlay, and the tables looked at after every crash. */
import { QCOW2_CHAOS_POINTS, QCOW2_OVERLAY_CHAOS_POINTS } from "../../src/image/qcow2/chaos-points.ts";
import { drawn } from "../support/seed.ts";
import { itCatches, itSurvivesCrashes, tableOverlays } from "./overlay-bulk.ts";

const OVERLAYS = tableOverlays("qcow2");

itSurvivesCrashes(1, OVERLAYS);

for (const [point, what] of drawn(Object.entries(QCOW2_OVERLAY_CHAOS_POINTS), 1)) {
  itCatches(OVERLAYS, point, what, point === "qcow2/rewrite-skipped" ? 0.5 : undefined);
}
for (const point of ["qcow2/count-unsynced", "qcow2/cluster-unlocked"] as const)
  itCatches(OVERLAYS, point, QCOW2_CHAOS_POINTS[point]);
