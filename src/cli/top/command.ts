/** `blockferry top`: its flags and help. */
import { type Command, Option } from "@commander-js/extra-typings";
import { configOption, jsonOption } from "../common-options.ts";

const HELP = `
On a terminal the view is drawn again every second, and as soon as something happens; q or Ctrl-C ends it. Anywhere else
there is a line a second for every disk; with --json, an object a second for all of them.

Without --control, every instance is meant whose socket is in the runtime directory ($XDG_RUNTIME_DIR/blockferry, as root
/run/blockferry); those that start later appear by themselves. It ends when none of them is left.
Exit codes: 0 ended, by you or with the last instance · 64 bad command line · 69 no such instance, or none at all`;

export function addTop(program: Command): void {
  program
    .command("top")
    .summary("watch running instances")
    .description("Shows how running instances are, again and again: progress, rate, guests' waits, window and source.")
    .addOption(
      new Option("-C, --control <socket>", "control socket of an instance; may be repeated (default: all)").argParser(
        (path: string, before: string[] | undefined) => [...(before ?? []), path],
      ),
    )
    .option("--once", "show it once, and end")
    .addOption(configOption())
    .addOption(jsonOption())
    .addHelpText("after", HELP)
    .action(async (flags) => await (await import("./action.ts")).runTop(flags));
}
