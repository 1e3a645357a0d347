/** `blockferry clone`: its flags and help. */
import { type Command, Option } from "@commander-js/extra-typings";
import type { CommandContext } from "../command-context.ts";
import { progressOption } from "../progress/option.ts";
import { addListenOptions, addLogOptions, addProcessOptions, addTlsOptions } from "../serving/options.ts";
import { parseSize } from "../settings/option-values.ts";
import { parseDuration, parseRate, parseWindow } from "../verbs/values.ts";
import type { CloneFlags } from "./plan.ts";

const EXPORT = "What to export:";
const STREAM = "The stream from the source:";

const EXAMPLES = `
Examples:
  blockferry clone nbd://storage/vda vda.raw             a copy of vda, usable at once on 127.0.0.1:10809
  blockferry clone -U /run/vda.sock --rate 100M 'nbd+unix:///?socket=/run/src.sock' vda.raw
  blockferry clone --exit-when-hydrated nbds://storage/vda vda.qcow2  just the copy, as qcow2
  blockferry clone --overwrite-device --format raw nbds://storage/vda /dev/vg/vda     onto a volume, as large or larger
The same command again resumes, and keeps whatever was written to the copy. vda.raw.map beside the image (of a block
device, a file in /var/lib/blockferry/devices) says what is local; until everything is, only \`clone\` opens the image. The
source must not change meanwhile, and is never written.

Signals: SIGTERM or SIGINT answers what is under way (5 s at most), makes everything durable and exits. SIGUSR1 prints
one line about the state. More with \`blockferry status\`, \`wait\`, \`pause\`, \`set-speed\`, \`missing\`.
Exit codes: 0 ok, or told to stop · 1 failure · 64 bad command line · 69 the source does not answer, or has another disk ·
74 image or disk · 75 in use, or --exit-when-hydrated was interrupted: the same command goes on · 78 configuration`;

export function addClone(program: Command, context: CommandContext): void {
  const command = program
    .command("clone")
    .summary("copy a disk from an NBD server, usable at once")
    .description(
      "Makes IMAGE a copy of an NBD export that can be read and written at once over NBD: what a client asks for is fetched " +
        "from the source on demand, the rest in the background, until the image stands alone.",
    )
    .argument("<source>", "the NBD URI of what to copy")
    .argument("<image>", "the copy: a new file or a block device, or what an earlier clone of the same source left");
  addListenOptions(command);
  command
    .optionsGroup(EXPORT)
    .option("-x, --export-name <name>", "name of the export; the image is the default export as well")
    .option("--description <text>", "shown to clients that list the exports")
    .option("--format <format>", "format of the image: raw, qed or qcow2 (default: by its extension, else raw)")
    .option(
      "--cluster-size <size>",
      "of a new image: how finely local and missing are told apart (default: 4K)",
      parseSize,
    )
    .option("--overwrite-device", "IMAGE may be a block device: what is on it is lost")
    .optionsGroup(STREAM)
    .option("--rate <rate>", "bytes a second in the background, such as 100M (default: unlimited)", parseRate)
    .option(
      "--window <size>",
      "bytes asked for at a time in the background, or auto (default: auto, as much as the path holds)",
      parseWindow,
    )
    .option("--record-trace <file>", "write down which regions clients read first, and when")
    .option("--replay-trace <file>", "bring what a recorded trace names first, in its order")
    .addOption(
      new Option(
        "--on-source-loss <policy>",
        "reads of missing blocks while the source is away (default: stall)",
      ).choices(["stall", "eio"] as const),
    )
    .option("--source-loss-deadline <time>", "with eio: how long they wait all the same (default: 30s)", parseDuration)
    .option("--exit-when-hydrated", "exit with 0 as soon as the image stands alone")
    .addOption(progressOption())
    .option("--insecure", "copy from, and serve, beyond this host without TLS");
  addTlsOptions(command);
  addProcessOptions(command);
  command.option("-C, --control <path>", "the control socket (default: one in the runtime directory)");
  addLogOptions(command);
  command.addHelpText("after", EXAMPLES);
  command.action(async (source, image, flags: CloneFlags) => {
    const { runClone } = await import("./action.ts");
    context.exitWith(await runClone({ source, image }, flags, context));
  });
}
