/** `blockferry demo`: see it work on this machine. */
import { tmpdir } from "node:os";
import type { Command } from "@commander-js/extra-typings";
import { CliError, usageError } from "./cli-error.ts";
import type { CommandContext } from "./command-context.ts";
import { configOption, jsonOption } from "./common-options.ts";
import { EXIT_FAILURE } from "./exit-codes.ts";
import { printableJson } from "./printable.ts";
import { parseSize } from "./settings/option-values.ts";

const UNIT_BYTES = 1024 * 1024;
const DEFAULT_BYTES = 512 * UNIT_BYTES;
const LEAST_BYTES = 4 * UNIT_BYTES;

export function addDemo(program: Command, _context: CommandContext): void {
  program
    .command("demo")
    .summary("see a disk move under a guest at work, on this machine")
    .description(
      "Moves a disk from a `blockferry source` to a `blockferry dest` while a guest (of our own making) reads and writes it, " +
        "kills the source when it is not needed any more, and compares every byte. Leaves nothing behind.",
    )
    .option("--size <size>", "size of the disk (default: 512M)", parseSize)
    .option("--directory <dir>", "where the images are made (default: the folder for temporary files)")
    .addOption(configOption())
    .addOption(jsonOption())
    .action(async (flags) => {
      const { size: sizeBytes = DEFAULT_BYTES, directory = tmpdir(), json } = flags;
      if (sizeBytes < LEAST_BYTES || sizeBytes % UNIT_BYTES !== 0) {
        throw usageError("cannot use --size", "the size is not a multiple of 1 MiB, or below 4 MiB", "try --size 64M");
      }
      const { runDemo } = await import("../demo/demo.ts");
      const { createRealEnv } = await import("../os/real-env.ts");
      const screen = {
        write: (text: string) => void (json ? process.stderr : process.stdout).write(text),
        isTerminal: (json ? process.stderr : process.stdout).isTTY ?? false,
      };
      const command = [process.execPath, ...process.execArgv, process.argv[1] ?? ""];
      const report = await runDemo({ env: createRealEnv(), screen, command, sizeBytes, directory }).catch(
        (error: unknown) => {
          throw asCliError(error);
        },
      );
      if (json) process.stdout.write(`${printableJson({ ok: true, ...report })}\n`);
    });
}

function asCliError(error: unknown): unknown {
  if (!(error instanceof Error && error.name === "DemoFailure")) return error;
  const { what, why, hint } = error as Error & { what: string; why: string; hint: string };
  return new CliError({ exitCode: EXIT_FAILURE, code: "demo", what, why, hint }, { cause: error });
}
