/** `switchover`, `cancel` and `reclaim`: their flags and help. Either side's control socket will do, but for `reclaim`. */
import { type Command, Option } from "@commander-js/extra-typings";
import type { CommandContext } from "../command-context.ts";
import { configOption, jsonOption } from "../common-options.ts";

const WHICH = `
Without --control, the only instance that runs here is meant: the one whose socket is in the runtime directory
($XDG_RUNTIME_DIR/blockferry, as root /run/blockferry).`;

const SWITCHOVER = `${WHICH}
Exit codes: 0 the destination has the disks · 2 it was called off · 64 bad command line · 69 no such instance, or the
other side cannot be reached · 75 not ready, or the guest is writing (69 when asked on the destination) · --dry-run: 0 it would be
done, 2 it would not`;

export function addMigrationVerbs(program: Command, context: CommandContext): void {
  program
    .command("switchover")
    .summary("give the disks to the destination, now")
    .description("Gives all disks of a migration to the destination, and returns when it has them.")
    .addOption(controlOption())
    .option("--wait", "wait until the migration is ready, as long as it takes")
    .option("--dry-run", "only tell what would happen")
    .addOption(new Option("--force", "although the guest is writing; its writes are held").conflicts("dryRun"))
    .addOption(configOption())
    .addOption(jsonOption())
    .addHelpText("after", SWITCHOVER)
    .action(async (flags) => context.exitWith(await (await import("./verbs.ts")).switchOver(flags)));
  program
    .command("cancel")
    .summary("call a migration off: the source keeps its disks, or gets them back")
    .description(
      "Calls a migration off. Before the switchover the source just goes on, and the destination removes its images. " +
        "After it, the destination gives the disks back, unless its guest has written.",
    )
    .addOption(controlOption())
    .option("--reason <text>", "for the log of the other side")
    .addOption(configOption())
    .addOption(jsonOption())
    .addHelpText(
      "after",
      `${WHICH}\nExit codes: 0 the source has its disks · 2 the destination's guest has written · 69 · 75`,
    )
    .action(async (flags) => await (await import("./verbs.ts")).cancel(flags));
  program
    .command("reclaim")
    .summary("take the disks back from a destination that is gone for good")
    .description(
      "Takes the disks back without asking. Only when the destination cannot be running any more: with two hosts that " +
        "write the same disk, both lose. Without --destination-is-fenced it tells what would be lost, and does nothing.",
    )
    .addOption(controlOption())
    .option("--destination-is-fenced", "the destination is powered off, or cut off from its disks and its network")
    .addOption(configOption())
    .addOption(jsonOption())
    .addHelpText("after", WHICH)
    .action(async (flags) => await (await import("./verbs.ts")).reclaim(flags));
}

function controlOption() {
  return new Option("-C, --control <socket>", "control socket of the source or destination");
}
