/** The version, from package.json, which the bundle carries within it. */
import manifest from "../../package.json" with { type: "json" };

export const VERSION: string = manifest.version;
