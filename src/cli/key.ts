/** `blockferry key`: makes a pre-shared key for TLS. */
import { randomBytes } from "node:crypto";
import { writeFileSync } from "node:fs";
import { dirname } from "node:path";
import type { Command } from "@commander-js/extra-typings";
import { CliError, usageError } from "./cli-error.ts";
import type { CommandContext } from "./command-context.ts";
import { configOption, jsonOption } from "./common-options.ts";
import { EXIT_IO } from "./exit-codes.ts";
import { printableJson } from "./printable.ts";
import { shellQuote } from "./serving/uri.ts";

const KEY_BYTES = 32;
const DEFAULT_NAME = "blockferry";
const NAME = /^[\w.@+-]{1,64}$/;

export function addKey(program: Command, _context: CommandContext): void {
  program
    .command("key")
    .summary("make a pre-shared key for TLS")
    .description(
      "Makes a new random key and writes it to FILE as one line, name:hexkey, that only you can read (mode 0600). " +
        "An existing file is never overwritten. Copy FILE to the other host over a channel that you trust.",
    )
    .argument("<file>", "the file to make")
    .option("--name <name>", `the name that clients use (default: ${DEFAULT_NAME})`)
    .addOption(configOption())
    .addOption(jsonOption())
    .action((file, flags) => makeKey(file, flags));
}

function makeKey(file: string, flags: { name?: string; json?: boolean }): void {
  const name = flags.name ?? DEFAULT_NAME;
  if (!NAME.test(name)) {
    throw usageError(
      "cannot use --name",
      `${JSON.stringify(name)} has characters that URIs or key files mind`,
      "use letters, digits and . _ @ + - (64 at most)",
    );
  }
  try {
    writeFileSync(file, `${name}:${randomBytes(KEY_BYTES).toString("hex")}\n`, { flag: "wx", mode: 0o600 });
  } catch (error) {
    throw cannotWrite(file, error as NodeJS.ErrnoException);
  }
  process.stdout.write(flags.json ? `${printableJson({ file, name })}\n` : usage(file, name));
}

function usage(file: string, name: string): string {
  const quoted = shellQuote(file);
  return `${file} holds a new key named ${name}. Whoever has it can use the disk: keep it secret.
  serve with it:  blockferry serve --bind :: --tls-psk=${quoted} IMAGE
  libnbd:         nbdinfo 'nbds://${name}@HOST/?tls-psk-file=FILE'
  QEMU:           --object tls-creds-psk,id=tls0,endpoint=client,dir=DIR,username=${name}   (the key as DIR/keys.psk)
`;
}

function cannotWrite(file: string, error: NodeJS.ErrnoException): CliError {
  const exists = error.code === "EEXIST";
  return new CliError(
    {
      exitCode: EXIT_IO,
      code: exists ? "exists" : "io",
      what: `cannot write the key to ${file}`,
      why: exists ? "something of that name is there already" : error.message,
      hint: exists
        ? "choose another name, or remove it if nobody uses it any more"
        : `check the folder ${dirname(file)}`,
    },
    { cause: error },
  );
}
