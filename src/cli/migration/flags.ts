/** The flags that `source` and `dest` have in common. */
import type { CommandUnknownOpts } from "@commander-js/extra-typings";
import { Option } from "@commander-js/extra-typings";
import type { ServeFlags } from "../serving/plan.ts";
import type { Conflicts } from "../settings/settings.ts";

const LISTEN = "Where the guest finds its disks (default: a unix socket in the runtime directory):";
export const MIGRATION_GROUP = "The migration:";
const TLS = "TLS of the link (needed beyond this host):";

export interface MigrationFlags
  extends Pick<
    ServeFlags,
    | "unix"
    | "socket"
    | "port"
    | "bind"
    | "shared"
    | "tls"
    | "tlsCertificates"
    | "tlsPsk"
    | "insecure"
    | "fork"
    | "pidFile"
    | "exitWithParent"
    | "control"
    | "logLevel"
    | "logFormat"
    | "logFile"
    | "json"
  > {
  readonly disk?: readonly string[];
  readonly stateDir?: string;
  readonly tunnel?: readonly string[];
  readonly qmp?: string;
}

export const MIGRATION_CONFLICTS: Conflicts = [
  ["unix", "socket"],
  ["unix", "port"],
  ["unix", "bind"],
  ["socket", "port"],
  ["socket", "bind"],
  ["tls-certificates", "tls-psk"],
  ["insecure", "tls"],
  ["insecure", "tls-certificates"],
  ["insecure", "tls-psk"],
  ["fork", "exit-with-parent"],
];

/** For options that may come again. */
function collect(value: string, earlier: readonly string[] | undefined): readonly string[] {
  return [...(earlier ?? []), value];
}

export function addGuestListenOptions(command: CommandUnknownOpts, parsePort: (text: string) => number): void {
  command
    .optionsGroup(LISTEN)
    .option("-U, --unix <path>", "unix socket (mode 0600); - makes a private one")
    .option("-k, --socket <path>", "the same as --unix")
    .option("-p, --port <n>", "TCP port on this host; 0 takes a free one", parsePort)
    .option("-i, --bind <address>", "a loopback address (default: 127.0.0.1)");
}

export function addMigrationOptions(command: CommandUnknownOpts): void {
  command
    .optionsGroup(MIGRATION_GROUP)
    .addOption(
      new Option("--disk <spec>", "NAME=IMAGE[,format=F], as the arguments; may come again").argParser(collect),
    )
    .option("--state-dir <dir>", "what has to outlive this process (default: in /var/lib/blockferry, by disks)")
    .addOption(
      new Option(
        "--tunnel <spec>",
        "NAME=unix:PATH: carries connections from PATH on the source to PATH there",
      ).argParser(collect),
    )
    .option("--qmp <socket>", "QEMU's monitor on this host: the guest's memory moves with its disks; on both sides")
    .option("-C, --control <path>", "the control socket (default: one in the runtime directory)")
    .optionsGroup(TLS)
    .addOption(new Option("--tls <mode>", "require or off").choices(["off", "require"]))
    .option(
      "--tls-certificates <dir>",
      "ca-cert.pem, and server-cert.pem or client-cert.pem with their keys; both sides prove who they are",
    )
    .option("--tls-psk <file>", "a pre-shared key, as `blockferry key` makes it; the same file on both hosts")
    .option("--insecure", "link beyond this host without TLS");
}
