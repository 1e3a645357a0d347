/** Flags that every subcommand has. */
import { Option } from "@commander-js/extra-typings";

export const COMMON = "Everywhere:";

export function configOption() {
  return new Option("--config <file>", "read flags from a TOML file (also: every flag as BLOCKFERRY_<FLAG>)").helpGroup(
    COMMON,
  );
}

export function jsonOption() {
  return new Option("--json", "results and errors as JSON").helpGroup(COMMON);
}
