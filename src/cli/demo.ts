/** `blockferry demo`: see it work on this machine. */
import { tmpdir } from "node:os";
import { type Command, Option } from "@commander-js/extra-typings";
import { CLIENT_NAMES } from "../demo/client-names.ts";
import { CliError, usageError } from "./cli-error.ts";
import type { CommandContext } from "./command-context.ts";
import { configOption, jsonOption } from "./common-options.ts";
import { EXIT_FAILURE } from "./exit-codes.ts";
import { printableJson } from "./printable.ts";
import { parseSize } from "./settings/option-values.ts";

const UNIT_BYTES = 1024 * 1024;
const DEFAULT_BYTES = 256 * UNIT_BYTES;

export function addDemo(program: Command, _context: CommandContext): void {
  program
    .command("demo")
    .summary("see it work, on this machine")
    .description(
      "Makes a disk, serves it with a real `blockferry serve`, reads all of it with nbdcopy or qemu-img (or with our own " +
        "client when neither is installed), writes to it, and compares every byte. Leaves nothing behind.",
    )
    .option("--size <size>", "size of the disk (default: 256M)", parseSize)
    .option("--directory <dir>", "where the disk and its copy are made (default: the folder for temporary files)")
    .addOption(new Option("--client <name>", "who reads").choices(CLIENT_NAMES))
    .addOption(configOption())
    .addOption(jsonOption())
    .action(async (flags) => {
      const { size: sizeBytes = DEFAULT_BYTES, directory = tmpdir(), client, json } = flags;
      if (sizeBytes === 0 || sizeBytes % UNIT_BYTES !== 0) {
        throw usageError("cannot use --size", "the size is not a multiple of 1 MiB, or zero", "try --size 64M");
      }
      const { runDemo } = await import("../demo/demo.ts");
      const { createRealEnv } = await import("../os/real-env.ts");
      const screen = {
        write: (text: string) => void (json ? process.stderr : process.stdout).write(text),
        isTerminal: (json ? process.stderr : process.stdout).isTTY ?? false,
      };
      const command = [process.execPath, ...process.execArgv, process.argv[1] ?? ""];
      const options = {
        env: createRealEnv(),
        screen,
        command,
        sizeBytes,
        directory,
        ...(client !== undefined && { client }),
      };
      const steps = await runDemo(options).catch((error: unknown) => {
        throw asCliError(error);
      });
      if (json) process.stdout.write(`${printableJson({ ok: true, steps })}\n`);
    });
}

function asCliError(error: unknown): unknown {
  if (!(error instanceof Error && error.name === "DemoFailure")) return error;
  const { what, why, hint } = error as Error & { what: string; why: string; hint: string };
  return new CliError({ exitCode: EXIT_FAILURE, code: "demo", what, why, hint }, { cause: error });
}
