/** The flags of every subcommand that serves: where to listen, TLS, the process, the log. */
import { type CommandUnknownOpts, Option } from "@commander-js/extra-typings";
import { configOption, jsonOption } from "../common-options.ts";
import { LOG_LEVELS } from "../log.ts";
import { parseCount, parsePort } from "../settings/option-values.ts";

const LISTEN = "Where to listen (one of unix, port, or sockets from systemd):";
const TLS = "TLS (needed to serve beyond this host):";
const PROCESS = "The process:";

export function addListenOptions(command: CommandUnknownOpts): void {
  command
    .optionsGroup(LISTEN)
    .option("-U, --unix <path>", "unix socket (mode 0600); - makes a private one")
    .option("-k, --socket <path>", "the same as --unix")
    .option("-p, --port <n>", "TCP port; 0 takes a free one (default: 10809)", parsePort)
    .option("-i, --bind <address>", "TCP address (default: 127.0.0.1)")
    .option("--shared <n>", "connections at the same time; 0 means no limit but the server's own 128", parseCount);
}

export function addTlsOptions(command: CommandUnknownOpts): void {
  command
    .optionsGroup(TLS)
    .addOption(
      new Option("--tls <mode>", "require, on (offer) or off; require when there are credentials").choices([
        "off",
        "on",
        "require",
      ]),
    )
    .option("--tls-certificates <dir>", "server-cert.pem and server-key.pem (and ca-cert.pem to verify clients)")
    .option("--tls-psk <file>", "pre-shared keys, name:hexkey a line")
    .option("--tls-verify-peer", "clients must show a certificate of ca-cert.pem");
}

export function addProcessOptions(command: CommandUnknownOpts): void {
  command
    .optionsGroup(PROCESS)
    .option("--fork", "go to the background once clients can connect")
    .option("-P, --pid-file <file>", "written when clients can connect, removed at the end")
    .option("--exit-with-parent", "stop when the parent process is gone");
}

export function addLogOptions(command: CommandUnknownOpts): void {
  command
    .optionsGroup(PROCESS)
    .addOption(new Option("--log-level <level>", "what goes to the log").choices(LOG_LEVELS).default("warn"))
    .addOption(
      new Option("--log-format <form>", "json or text (default: text on a terminal)").choices(["json", "text"]),
    )
    .option("--log-file <file>", "append the log to a file instead of stderr")
    .addOption(configOption())
    .addOption(jsonOption());
}
