import type { CommandUnknownOpts } from "@commander-js/extra-typings";

/** What every subcommand is given. */
export interface CommandContext {
  /** The command line, without the program's name. */
  readonly args: readonly string[];
  /** The exit code of the process, once the action is over. Without a call it is 0. */
  exitWith(code: number): void;
  /** What environment and configuration file say to every subcommand. `asking` is the one that wants to know. */
  settings(asking: CommandUnknownOpts): readonly EffectiveSetting[];
}

export interface EffectiveSetting {
  /** "serve", "image map" */
  readonly command: string;
  readonly flag: string;
  readonly value: string | boolean;
  readonly origin: string;
}
