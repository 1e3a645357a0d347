/** `blockferry serve`: its flags, its help, and the ways in which a process may serve (foreground, `--fork`, `--run`). */
import { type Command, Option } from "@commander-js/extra-typings";
import type { CommandContext } from "./command-context.ts";
import { configOption, jsonOption } from "./common-options.ts";
import type { LogLevel } from "./log.ts";
import { parseCount, parsePort } from "./option-values.ts";
import type { ServeFlags } from "./serve-plan.ts";

const LEVELS: readonly LogLevel[] = ["silent", "error", "warn", "info", "debug"];

const LISTEN = "Where to listen (one of unix, port, or sockets from systemd):";
const EXPORT = "What to export:";
const TLS = "TLS (needed to serve beyond this host):";
const PROCESS = "The process:";

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
    .argument("<image>", "the image")
    .optionsGroup(LISTEN)
    .option("-U, --unix <path>", "unix socket (mode 0600); - makes a private one")
    .option("-k, --socket <path>", "the same as --unix")
    .option("-p, --port <n>", "TCP port; 0 takes a free one (default: 10809)", parsePort)
    .option("-i, --bind <address>", "TCP address (default: 127.0.0.1)")
    .optionsGroup(EXPORT)
    .option("-x, --export-name <name>", "name of the export; the image is the default export as well")
    .option("--description <text>", "shown to clients that list the exports")
    .option("-r, --read-only", "refuse writes, and leave the image to other readers")
    .option("--format <format>", "format of the image (default: by its extension, else raw; never by its contents)")
    .option("--shared <n>", "connections at the same time; 0 means no limit but the server's own 128", parseCount)
    .optionsGroup(TLS)
    .addOption(
      new Option("--tls <mode>", "require, on (offer) or off; require when there are credentials").choices([
        "off",
        "on",
        "require",
      ] as const),
    )
    .option("--tls-certificates <dir>", "server-cert.pem and server-key.pem (and ca-cert.pem to verify clients)")
    .option("--tls-psk <file>", "pre-shared keys, name:hexkey a line")
    .option("--tls-verify-peer", "clients must show a certificate of ca-cert.pem")
    .option("--insecure", "serve beyond this host without TLS")
    .optionsGroup(PROCESS)
    .option("--fork", "go to the background once clients can connect")
    .option("-P, --pid-file <file>", "written when clients can connect, removed at the end")
    .option("--exit-with-parent", "stop when the parent process is gone")
    .option("--run <command>", "serve while a shell command runs; it sees $uri $nbd $unixsocket $port $exportname")
    .addOption(new Option("--log-level <level>", "what goes to the log").choices(LEVELS).default("warn" as LogLevel))
    .addOption(
      new Option("--log-format <form>", "json or text (default: text on a terminal)").choices([
        "json",
        "text",
      ] as const),
    )
    .option("--log-file <file>", "append the log to a file instead of stderr")
    .addOption(configOption())
    .addOption(jsonOption())
    .addHelpText("after", EXAMPLES);
  command.action(async (image, flags: ServeFlags) => {
    const { runServe } = await import("./serve-action.ts");
    context.exitWith(await runServe(image, flags, context));
  });
}
