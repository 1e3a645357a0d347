/** `blockferry serve`: its flags, its help, and the ways in which a process may serve (foreground, `--fork`, `--run`). */
import type { Command } from "@commander-js/extra-typings";
import type { CommandContext } from "../command-context.ts";
import { addListenOptions, addLogOptions, addProcessOptions, addTlsOptions } from "../serving/options.ts";
import type { ServeFlags } from "../serving/plan.ts";

const EXPORT = "What to export:";

const EXAMPLES = `
Examples:
  blockferry serve disk.raw                              on 127.0.0.1:10809, read-write
  blockferry serve -r -U /run/disk.sock -x vda disk.raw  read-only, on a unix socket, as "vda" (and as "")
  blockferry serve -i :: --tls-psk=keys.psk disk.raw     to other hosts; make the key with \`blockferry key\`
  blockferry serve --run 'qemu-img info $uri' disk.raw   for one command, on a private socket
  nbdinfo -- [ blockferry serve disk.raw ]               by socket activation
  systemd: Type=notify, with or without a .socket unit

Signals: SIGTERM or SIGINT answers what is under way (5 s at most), flushes and exits with 0; a second SIGINT does not
wait (130). SIGUSR1 prints one line about the state.
Exit codes: 0 ok · 1 failure · 64 bad command line · 74 image or disk · 75 image or address in use, try again ·
78 configuration or credentials. With --run: the exit code of the command.`;

export function addServe(program: Command, context: CommandContext): void {
  const command = program
    .command("serve")
    .summary("serve an image over NBD")
    .description(
      "Serves an image file or block device over NBD until it is told to stop, and prints the URI to connect to.",
    )
    .argument("<image>", "the image; over others: top.qcow2,backing=mid.qcow2,backing=base.raw");
  addListenOptions(command);
  command
    .optionsGroup(EXPORT)
    .option("-x, --export-name <name>", "name of the export; the image is the default export as well")
    .option("--description <text>", "shown to clients that list the exports")
    .option("-r, --read-only", "refuse writes, and leave the image to other readers")
    .option("--format <format>", "format of the image (default: by its extension, else raw; never by its contents)");
  addTlsOptions(command);
  command.option("--insecure", "serve beyond this host without TLS");
  addProcessOptions(command);
  command
    .option("-C, --control <socket>", "answer `blockferry status`, `quit` and the like on this unix socket")
    .option("--run <command>", "serve while a shell command runs; it sees $uri $nbd $unixsocket $port $exportname");
  addLogOptions(command);
  command.addHelpText("after", EXAMPLES);
  command.action(async (image, flags: ServeFlags) => {
    const { runServe } = await import("./action.ts");
    context.exitWith(await runServe(image, flags, context));
  });
}
