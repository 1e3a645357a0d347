import { itSurvivesCrashes } from "./overlay-bulk.ts";

itSurvivesCrashes(2);
