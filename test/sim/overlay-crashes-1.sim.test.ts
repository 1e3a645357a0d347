import { itSurvivesCrashes } from "./overlay-bulk.ts";

itSurvivesCrashes(1);
