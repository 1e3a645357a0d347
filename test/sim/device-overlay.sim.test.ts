/** Block devices as the stores of overlays: the histories of an overlay, on a device that was something else before. */
import { itSurvivesCrashes, tableOverlays } from "./overlay-bulk.ts";

const OVERLAYS = tableOverlays("device");

itSurvivesCrashes(1, { ...OVERLAYS, seconds: OVERLAYS.seconds / 2, crashesPerSecondMin: 1 });
