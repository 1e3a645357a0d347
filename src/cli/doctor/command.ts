/** `blockferry doctor`: what this machine and this build can do, and where settings come from. */
import type { Command } from "@commander-js/extra-typings";
import type { CommandContext } from "../command-context.ts";
import { configOption, jsonOption } from "../common-options.ts";

export function addDoctor(program: Command, context: CommandContext): void {
  const command = program
    .command("doctor")
    .summary("say what works on this machine, and what is missing")
    .description(
      "Tries out what blockferry uses of this machine: Node, native calls, the file system of DIRECTORY, and the NBD " +
        "programs of others. Exit code 0: everything that is needed is there; 2: something is missing.",
    )
    .argument("[directory]", "where images live", ".")
    .option("--show-config", "instead, list what the environment and the configuration file set")
    .addOption(configOption())
    .addOption(jsonOption());
  command.action(async (directory, flags) => {
    const { showConfig, showHealth } = await import("./action.ts");
    const json = flags.json ?? false;
    if (flags.showConfig) showConfig(context.settings(command as never), json);
    else context.exitWith(await showHealth(directory, json));
  });
}
