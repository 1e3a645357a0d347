/**
 * From a command line to an exit code: finds the subcommand, lays settings under its flags, runs it, and turns whatever
 * goes wrong into three lines on stderr.
 */
import { type Command, CommanderError } from "@commander-js/extra-typings";
import { type CliError, renderError, toCliError, usageError } from "./cli-error.ts";
import { EXIT_OK, EXIT_USAGE } from "./exit-codes.ts";
import { buildProgram } from "./program.ts";
import { expandBareFlags } from "./progress/option.ts";
import { applySettings, effectiveSettings } from "./settings/apply-settings.ts";
import { environmentName } from "./settings/settings.ts";

export async function runCommandLine(args: readonly string[]): Promise<number> {
  let exitCode = EXIT_OK;
  const program: Command = buildProgram({
    args,
    exitWith: (code) => {
      exitCode = code;
    },
    settings: (asking) => effectiveSettings(asking, program, process.env),
  });
  program.hook("preAction", (_program, command) => applySettings(command, program, process.env));
  try {
    await program.parseAsync(expandBareFlags(args), { from: "user" });
    return exitCode;
  } catch (error) {
    if (error instanceof CommanderError && error.exitCode === 0) return EXIT_OK;
    // Help that nobody asked for has said all there is to say.
    if (error instanceof CommanderError && error.code === "commander.help") return EXIT_USAGE;
    const failure = error instanceof CommanderError ? fromCommander(error, args) : toCliError(error);
    process.stderr.write(renderError(failure, wantsJson(args)));
    return failure.parts.exitCode;
  }
}

/** "error: unknown option '--prot'\n(Did you mean --port?)" and the like. */
function fromCommander(error: CommanderError, args: readonly string[]): CliError {
  const [first = "", suggestion] = error.message.replace(/^error: /, "").split("\n", 2);
  const subcommand = args.find((word) => /^[a-z][a-z-]*$/.test(word));
  const help = subcommand === undefined ? "blockferry --help" : `blockferry ${subcommand} --help`;
  const hint =
    suggestion === undefined ? `see \`${help}\`` : `${suggestion.replace(/^\((.*)\)$/, "$1")} See \`${help}\``;
  return usageError("cannot understand the command line", first, hint);
}

/** Whether errors are for a program: also when the command line could not be parsed. */
function wantsJson(args: readonly string[]): boolean {
  return args.includes("--json") || /^(1|true|yes|on)$/i.test(process.env[environmentName("json")] ?? "");
}
