/** `blockferry demo`: see it work on this machine. */
import { realpathSync } from "node:fs";
import { tmpdir } from "node:os";
import type { Command } from "@commander-js/extra-typings";
import type { DemoOptions } from "../demo/demo.ts";
import type { DemoFailure } from "../demo/failure.ts";
import { CliError, usageError } from "./cli-error.ts";
import type { CommandContext } from "./command-context.ts";
import { configOption, jsonOption } from "./common-options.ts";
import { EXIT_CONFIG, EXIT_FAILURE } from "./exit-codes.ts";
import { printableJson } from "./printable.ts";
import { parseSize } from "./settings/option-values.ts";

const UNIT_BYTES = 1024 * 1024;
const DEFAULT_BYTES = 512 * UNIT_BYTES;
const LEAST_BYTES = 4 * UNIT_BYTES;
/** Room for a file system, and for what its guest writes. */
const LEAST_VM_BYTES = 64 * UNIT_BYTES;

export function addDemo(program: Command, _context: CommandContext): void {
  program
    .command("demo")
    .summary("see a disk move under a guest at work, on this machine")
    .description(
      "Moves a disk from a `blockferry source` to a `blockferry dest` while a guest (of our own making) reads and writes it, " +
        "kills the source when it is not needed any more, and compares every byte. Leaves nothing behind. With --vm the guest is " +
        "a real one: its kernel is Debian's, downloaded and kept when it is needed first.",
    )
    .option("--size <size>", "size of the disk (default: 512M)", parseSize)
    .option("--vm", "move a real Linux guest in QEMU, with its memory, which then reads its files back (needs QEMU)")
    .option("--directory <dir>", "where the images are made (default: the folder for temporary files)")
    .addOption(configOption())
    .addOption(jsonOption())
    .action(async (flags) => {
      const { size: sizeBytes = DEFAULT_BYTES, directory = tmpdir(), json, vm } = flags;
      checkSize(sizeBytes, vm === true ? LEAST_VM_BYTES : LEAST_BYTES);
      const { createRealEnv } = await import("../os/real-env.ts");
      const screen = {
        write: (text: string) => void (json ? process.stderr : process.stdout).write(text),
        isTerminal: (json ? process.stderr : process.stdout).isTTY ?? false,
      };
      const main = process.argv[1] ?? "";
      const command = [process.execPath, ...process.execArgv, main];
      const options = { env: createRealEnv(), screen, command, sizeBytes, directory };
      const running = vm === true ? runWithGuest(options, main) : runWithout(options);
      const report = await running.catch((error: unknown) => {
        throw asCliError(error);
      });
      if (json) process.stdout.write(`${printableJson({ ok: true, ...report })}\n`);
    });
}

async function runWithout(options: DemoOptions): Promise<object> {
  const { runDemo } = await import("../demo/demo.ts");
  return await runDemo(options);
}

async function runWithGuest(options: DemoOptions, main: string): Promise<object> {
  const { runVmDemo } = await import("../demo/vm/vm-demo.ts");
  return await runVmDemo({ ...options, main: realpathSync(main), environment: process.env });
}

function checkSize(sizeBytes: number, leastBytes: number): void {
  if (sizeBytes >= leastBytes && sizeBytes % UNIT_BYTES === 0) return;
  const why = `the size is not a multiple of 1 MiB, or below ${leastBytes / UNIT_BYTES} MiB`;
  throw usageError("cannot use --size", why, "try --size 64M");
}

function asCliError(error: unknown): unknown {
  if (!(error instanceof Error && error.name === "DemoFailure")) return error;
  const { what, why, hint, kind } = error as DemoFailure;
  const exitCode = kind === "setup" ? EXIT_CONFIG : EXIT_FAILURE;
  return new CliError({ exitCode, code: "demo", what, why, hint }, { cause: error });
}
