/** Lays environment and configuration file under the flags of a subcommand: the meeting of `settings.ts` and commander. */
import type { CommandUnknownOpts, Option } from "@commander-js/extra-typings";
import { usageError } from "../cli-error.ts";
import type { EffectiveSetting } from "../command-context.ts";
import { MIGRATION_CONFLICTS } from "../migration/flags.ts";
import { CLONE_CONFLICTS, SERVE_CONFLICTS } from "../serving/plan.ts";
import { type ConfigFile, type KnownFlags, readConfigFile } from "./config-file.ts";
import { type Conflicts, environmentName, layerSettings, type Setting } from "./settings.ts";

type Environment = Readonly<Record<string, string | undefined>>;

const CONFLICTS: ReadonlyMap<string, Conflicts> = new Map([
  ["serve", SERVE_CONFLICTS],
  ["clone", CLONE_CONFLICTS],
  ["source", MIGRATION_CONFLICTS],
  ["dest", MIGRATION_CONFLICTS],
]);

/** Gives `command` the values that its command line leaves open. Throws for values and keys that cannot be used. */
export function applySettings(command: CommandUnknownOpts, program: CommandUnknownOpts, env: Environment): void {
  const byFlag = new Map(command.options.map((option) => [flagOf(option), option]));
  for (const setting of settingsFor(command, openConfigFile(command, program, env), env)) {
    const option = byFlag.get(setting.flag);
    if (option === undefined) continue;
    command.setOptionValueWithSource(option.attributeName(), parsed(option, setting), setting.source);
  }
}

/** What environment and file say to every subcommand. `asking` is the subcommand that wants to know. */
export function effectiveSettings(
  asking: CommandUnknownOpts,
  program: CommandUnknownOpts,
  env: Environment,
): EffectiveSetting[] {
  const file = openConfigFile(asking, program, env);
  return leaves(program).flatMap((command) =>
    settingsFor(command, file, env, { givenCounts: false }).map(({ flag, value, origin }) => ({
      command: pathOf(command),
      flag,
      value,
      origin,
    })),
  );
}

function settingsFor(
  command: CommandUnknownOpts,
  file: ConfigFile | undefined,
  env: Environment,
  options = { givenCounts: true },
): Setting[] {
  const path = pathOf(command);
  const shapes = command.options.map((option) => ({
    flag: flagOf(option),
    takesValue: option.required || option.optional,
  }));
  const onCommandLine = command.options.filter(
    (option) => command.getOptionValueSource(option.attributeName()) === "cli",
  );
  const given = new Set(options.givenCounts ? onCommandLine.map(flagOf) : []);
  return layerSettings(shapes, { given, env, file: file?.forCommand(path) ?? new Map() }, CONFLICTS.get(path));
}

function openConfigFile(
  command: CommandUnknownOpts,
  program: CommandUnknownOpts,
  env: Environment,
): ConfigFile | undefined {
  const path: unknown = command.getOptionValue("config") ?? env[environmentName("config")];
  if (typeof path !== "string" || path === "") return undefined;
  const known: KnownFlags = new Map(leaves(program).map((leaf) => [pathOf(leaf), new Set(leaf.options.map(flagOf))]));
  return readConfigFile(path, known);
}

/** The value as the flag's own parser makes it; its complaint names where the value stands. */
function parsed(option: Option, setting: Setting): unknown {
  if (typeof setting.value === "boolean" || option.parseArg === undefined) return setting.value;
  try {
    return option.parseArg(setting.value, undefined);
  } catch (error) {
    const why = `"${setting.value}" is not allowed. ${(error as Error).message}`;
    throw usageError(`cannot use ${setting.origin}`, why, `correct it; it stands for --${setting.flag}`);
  }
}

function flagOf(option: Option): string {
  return option.long?.replace(/^--/, "") ?? option.name();
}

/** Subcommands that do something themselves. */
function leaves(command: CommandUnknownOpts): CommandUnknownOpts[] {
  return command.commands.length === 0 ? [command] : command.commands.flatMap(leaves);
}

/** "image map" */
function pathOf(command: CommandUnknownOpts): string {
  const above = command.parent;
  return above === null || above.parent === null ? command.name() : `${pathOf(above)} ${command.name()}`;
}
