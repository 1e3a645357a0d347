/** The tree of subcommands. What each does is loaded when it is called. */

import { styleText } from "node:util";
import { Command, Option } from "@commander-js/extra-typings";
import { addClone } from "./clone/command.ts";
import type { CommandContext } from "./command-context.ts";
import { COMMON } from "./common-options.ts";
import { addDemo } from "./demo.ts";
import { addDest } from "./dest/command.ts";
import { addDoctor } from "./doctor/command.ts";
import { addImage } from "./image/command.ts";
import { addKey } from "./key.ts";
import { addMigrationVerbs } from "./migration/verbs-command.ts";
import { addPrint } from "./print/command.ts";
import { addServe } from "./serve/command.ts";
import { addSource } from "./source/command.ts";
import { addTop } from "./top/command.ts";
import { addVerbs } from "./verbs/command.ts";
import { VERSION } from "./version.ts";

const EXAMPLES = `
Examples:
  blockferry source vda=disk.raw --link A:7000 --tls-psk k.psk    offer a guest's disk, print the line for the other host
  blockferry serve disk.raw            serve an image, and print the URI to connect to
  blockferry image map disk.raw        show what is data and what is a hole
  blockferry status                    ask the instance that runs here how it is
  blockferry demo                      see a disk move under a guest, on this machine

Every long flag can also be set as BLOCKFERRY_<FLAG> (BLOCKFERRY_LOG_LEVEL=info) or in a file (--config FILE).
A flag on the command line goes before the environment, and that before the file.
\`blockferry COMMAND --help\` tells the rest; docs/CLI.md has it all.`;

export function buildProgram(context: CommandContext): Command {
  const program = new Command("blockferry")
    .description("Moves the disks of running virtual machines between hosts, and serves and copies images over NBD.")
    .optionsGroup(COMMON)
    .version(VERSION, "-V, --version", "print the version")
    .addHelpOption(new Option("-h, --help", "print help").helpGroup(COMMON))
    .helpCommand(false)
    .exitOverride()
    // Errors are reported by whoever called: three lines, or JSON.
    .configureOutput({ outputError: () => {} })
    .configureHelp({ styleTitle: (title) => styleText("bold", title) })
    .addHelpText("after", EXAMPLES);
  program.commandsGroup("Disks:");
  addServe(program, context);
  addClone(program, context);
  addSource(program, context);
  addDest(program, context);
  addImage(program, context);
  program.commandsGroup("Running instances:");
  addVerbs(program, context);
  addMigrationVerbs(program, context);
  addTop(program);
  program.commandsGroup("Setting up:");
  addKey(program, context);
  addPrint(program);
  addDoctor(program, context);
  addDemo(program, context);
  return program;
}
