/** The verbs that ask or tell a running instance, over its control socket: their flags and help. */
import { Argument, type Command, Option } from "@commander-js/extra-typings";
import type { Milestone } from "../../control/verbs.ts";
import type { CommandContext } from "../command-context.ts";
import { configOption, jsonOption } from "../common-options.ts";
import { parseDuration, parseRate } from "./values.ts";

const WHICH = `
Without --control, the only instance that runs here is meant: the one whose socket is in the runtime directory
($XDG_RUNTIME_DIR/blockferry, as root /run/blockferry).
Exit codes: 0 ok · 64 bad command line, several instances or disks · 69 no such instance, or it does not answer`;

const MILESTONE_WORDS = [
  "listening",
  "ready",
  "active",
  "hydrated",
  "complete",
] as const satisfies readonly Milestone[];

export function addVerbs(program: Command, context: CommandContext): void {
  addStatus(program);
  addEvents(program);
  addMaps(program);
  addWait(program, context);
  addOrders(program);
}

function addStatus(program: Command): void {
  program
    .command("status")
    .summary("how a running instance is")
    .description("Tells what an instance serves, how much of it is here, how fast the rest comes, and what to do next.")
    .addOption(controlOption())
    .addOption(diskOption())
    .addOption(new Option("--raw", "one line of key=value words").conflicts("json"))
    .addOption(configOption())
    .addOption(jsonOption())
    .addHelpText("after", WHICH)
    .action(async (flags) => await (await import("./actions.ts")).printStatus(flags));
}

function addEvents(program: Command): void {
  program
    .command("events")
    .summary("what has happened in an instance")
    .description("Lists the newest events of an instance, one a line; with --follow also those to come, until it ends.")
    .addOption(controlOption())
    .option("-f, --follow", "go on with what happens from now on")
    .addOption(configOption())
    .addOption(jsonOption())
    .addHelpText("after", WHICH)
    .action(async (flags) => await (await import("./actions.ts")).printEvents(flags));
}

function addMaps(program: Command): void {
  program
    .command("map")
    .summary("what of a disk is here, and what is missing")
    .description("Lists the runs of a disk that are local or missing, in the columns of `nbdinfo --map`.")
    .addOption(controlOption())
    .addOption(diskOption())
    .option("--totals", "how much of each, instead of where")
    .addOption(configOption())
    .addOption(jsonOption())
    .addHelpText("after", WHICH)
    .action(async (flags) => await (await import("./map.ts")).printPresence(flags));
  program
    .command("missing")
    .summary("what would be lost with the source")
    .description("Lists offset and length of every run of a disk that is not here. Nothing at all: nothing is missing.")
    .addOption(controlOption())
    .addOption(diskOption())
    .addOption(configOption())
    .addOption(jsonOption())
    .addHelpText("after", WHICH)
    .action(async (flags) => await (await import("./map.ts")).printMissing(flags));
}

function addWait(program: Command, context: CommandContext): void {
  program
    .command("wait")
    .summary("wait until an instance has come so far")
    .description(
      "Waits until an instance has reached a milestone. Exit code 2: it was not reached in time, or never will be.",
    )
    .addOption(controlOption())
    .addOption(new Option("--for <milestone>", "what to wait for").choices(MILESTONE_WORDS).makeOptionMandatory())
    .option(
      "--timeout <duration>",
      "how long at the most: 60s, 5m, 250ms (default: as long as it takes)",
      parseDuration,
    )
    .addOption(configOption())
    .addOption(jsonOption())
    .addHelpText("after", `\n--for=listening also waits for the instance itself to appear.\n${WHICH}`)
    .action(async (flags) => context.exitWith(await (await import("./wait.ts")).waitFor(flags)));
}

function addOrders(program: Command): void {
  for (const [verb, summary] of [
    ["pause", "hold the background copy; what the guest asks for still comes"],
    ["resume", "go on with the background copy"],
  ] as const) {
    program
      .command(verb)
      .summary(summary)
      .description(`${summary.charAt(0).toUpperCase()}${summary.slice(1)}.`)
      .addOption(controlOption())
      .addOption(diskOption())
      .addOption(configOption())
      .addOption(jsonOption())
      .addHelpText("after", WHICH)
      .action(async (flags) => await (await import("./actions.ts")).order(verb, flags));
  }
  program
    .command("set-speed")
    .summary("limit the background copy")
    .description("Limits the background copy; what the guest asks for is never held up.")
    .addArgument(new Argument("<rate>", "bytes a second: 50M, 1.5G; or unlimited").argParser(parseRate))
    .addOption(controlOption())
    .addOption(diskOption())
    .addOption(configOption())
    .addOption(jsonOption())
    .addHelpText("after", WHICH)
    .action(async (rate, flags) => await (await import("./actions.ts")).setSpeed(rate, flags));
  program
    .command("quit")
    .summary("end an instance")
    .description("Ends an instance as SIGTERM does, and returns when it has made everything durable and let go of it.")
    .addOption(controlOption())
    .addOption(configOption())
    .addOption(jsonOption())
    .addHelpText("after", WHICH)
    .action(async (flags) => await (await import("./actions.ts")).quit(flags));
}

function controlOption() {
  return new Option("-C, --control <socket>", "control socket of the instance");
}

function diskOption() {
  return new Option("--disk <name>", "which disk, where there are several");
}
