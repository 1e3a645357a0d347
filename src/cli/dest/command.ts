/** `blockferry dest`: its flags and help. */
import { type Command, Option } from "@commander-js/extra-typings";
import type { CommandContext } from "../command-context.ts";
import { addGuestListenOptions, addMigrationOptions, MIGRATION_GROUP } from "../migration/flags.ts";
import { progressOption } from "../progress/option.ts";
import { addLogOptions, addProcessOptions } from "../serving/options.ts";
import { parseCount, parsePort } from "../settings/option-values.ts";
import { parseDuration, parseRate } from "../verbs/values.ts";
import type { DestFlags } from "./plan.ts";

const STREAM = "The stream from the source:";

const EXAMPLES = `
Examples:
  B$ blockferry dest A:7000 vda=/vm/disk.raw --tls-psk k.psk     \`blockferry source\` on A prints this line
  B$ blockferry switchover --wait                                 the disks are B's; start the guest here
  B$ blockferry wait --for=complete                               and now A is not needed any more
The guest finds its disk as an NBD export of the disk's name, on the socket that is printed, from the first contact with
the source on; it may write to it after the switchover. The images must not be there yet, unless they are block devices.

The same command again goes on where it was, whatever stopped it, and keeps what the guest wrote.
Exit codes: 0 told to stop · 2 the migration was called off: the source has the disks · 64 bad command line · 69 the
source does not answer, or refuses this destination · 74 image or disk · 75 image, address or state in use, or an image is
there already · 78 configuration, or the keys do not match`;

export function addDest(program: Command, context: CommandContext): void {
  const command = program
    .command("dest")
    .summary("take a guest's disks over from another host")
    .description(
      "Pulls the disks that a source offers, takes them over at the switchover, serves them to the guest at once, and " +
        "fetches the rest: what the guest asks for first, everything else in the background.",
    )
    .argument("[words...]", "the source's address, host:port or unix:/path, then NAME=IMAGE[,format=F]…");
  addGuestListenOptions(command, parsePort);
  command.option("--shared <n>", "connections at the same time; 0 means no limit but the server's own 128", parseCount);
  addMigrationOptions(command);
  command
    .optionsGroup(MIGRATION_GROUP)
    .option("--from <address>", "the source's address, in place of the first argument")
    .option("--overwrite-device", "IMAGE may be a block device: what is on it is lost")
    .optionsGroup(STREAM)
    .addOption(
      new Option(
        "--mode <mode>",
        "pull before and after the switchover, after it only, or all but a rest before it (default: hybrid)",
      ).choices(["hybrid", "postcopy", "precopy"] as const),
    )
    .option(
      "--rate <rate>",
      "bytes a second in the background for each disk, such as 100M (default: unlimited)",
      parseRate,
    )
    .addOption(
      new Option(
        "--on-source-loss <policy>",
        "reads of missing blocks while the link is down (default: stall)",
      ).choices(["stall", "eio", "pause"] as const),
    )
    .option(
      "--source-loss-deadline <time>",
      "with eio or pause: how long they wait all the same (default: 30s)",
      parseDuration,
    )
    .addOption(
      new Option(
        "--early-reads <policy>",
        "reads before the switchover come from the source, or fail (default: passthrough)",
      ).choices(["passthrough", "refuse"] as const),
    )
    .addOption(progressOption());
  addProcessOptions(command);
  addLogOptions(command);
  command.addHelpText("after", EXAMPLES);
  command.action(async (words, flags) => {
    const { runDest } = await import("./action.ts");
    context.exitWith(await runDest(words, flags as DestFlags, context));
  });
}
