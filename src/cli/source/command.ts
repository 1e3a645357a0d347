/** `blockferry source`: its flags and help. */
import type { Command } from "@commander-js/extra-typings";
import type { CommandContext } from "../command-context.ts";
import { addGuestListenOptions, addMigrationOptions, MIGRATION_GROUP } from "../migration/flags.ts";
import { addLogOptions, addProcessOptions } from "../serving/options.ts";
import { parseCount, parsePort } from "../settings/option-values.ts";
import { parseRate } from "../verbs/values.ts";
import type { SourceFlags } from "./plan.ts";

const EXAMPLES = `
Examples:
  A$ blockferry source vda=/vm/disk.raw --link A:7000 --tls-psk k.psk      prints the line for the other host
  B$ blockferry dest A:7000 vda=/vm/disk.raw --tls-psk k.psk
  B$ blockferry switchover --wait
The guest uses its disk as an NBD export of the disk's name, on the socket that is printed. All disks of a guest belong
into one migration: they change hands together.

The same command again goes on where it was, whatever stopped it. /vm/disk.raw.owner says whose the disk is (of a block
device, a record in /var/lib/blockferry/devices): once it was given away, no command of blockferry opens the image here.
\`blockferry status\` says what to do next.

Signals: SIGTERM or SIGINT answers what is under way (5 s at most) and exits; nothing changes hands by that.
Exit codes: 0 told to stop · 64 bad command line · 74 image or disk · 75 image, address or state in use, or the disk is
somebody else's · 78 configuration`;

export function addSource(program: Command, context: CommandContext): void {
  const command = program
    .command("source")
    .summary("offer a guest's disks to another host, and give them away at the switchover")
    .description(
      "Serves the disks of a guest over NBD, and lets a destination pull them meanwhile. At the switchover the disks become " +
        "the destination's, all at once; what it does not have yet it fetches from here.",
    )
    .argument("[disks...]", "NAME=IMAGE[,format=F][,backing=IMAGE]…");
  addGuestListenOptions(command, parsePort);
  command.option("--shared <n>", "connections at the same time; 0 means no limit but the server's own 128", parseCount);
  addMigrationOptions(command);
  command
    .optionsGroup(MIGRATION_GROUP)
    .option("--link <address>", "where the destination dials: host:port, or unix:/path")
    .option("--late-open", "QEMU itself has the images open: take them over when its guest has moved (with --qmp)");
  command.option(
    "--rate <rate>",
    "bytes a second that the destination may pull of each disk in the background, such as 100M (default: unlimited)",
    parseRate,
  );
  addProcessOptions(command);
  addLogOptions(command);
  command.addHelpText("after", EXAMPLES);
  command.action(async (disks, flags) => {
    const { runSource } = await import("./action.ts");
    context.exitWith(await runSource(disks, flags as SourceFlags, context));
  });
}
