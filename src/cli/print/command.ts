/** `blockferry print`: its flags and help. */
import type { Command } from "@commander-js/extra-typings";
import { configOption } from "../common-options.ts";

const QEMU = `
Examples:
  blockferry print qemu 'nbd+unix:///vda?socket=/run/blockferry/dest-vda.sock' --qmp /run/vm.qmp --incoming
  qemu-system-x86_64 -m 4G … $(blockferry print qemu …)     needs eval, for the quotes: eval qemu-system-x86_64 … "$(…)"
URIs are what serve, clone, source and dest print.`;

const SYSTEMD = `
Example:
  blockferry print systemd -- source vda=/vm/disk.raw --link A:7000 --tls-psk /etc/blockferry/k.psk \\
    > /etc/systemd/system/blockferry-vda.service`;

export function addPrint(program: Command): void {
  const print = program
    .command("print")
    .summary("text for QEMU, libvirt or systemd, ready to paste")
    .description("Prints text for the programs of others, ready to paste. Starts nothing.");
  print
    .command("qemu")
    .summary("arguments of QEMU")
    .description("Prints the arguments with which QEMU uses NBD exports as disks, quoted for a shell.")
    .argument("<uris...>", "an NBD URI for each disk")
    .option("--stop-on-error", "an I/O error stops the guest, as --on-source-loss=pause needs it")
    .option("--qmp <socket>", "a monitor for --qmp of source and dest")
    .option("--incoming", "wait for a guest that dest --qmp receives")
    .addOption(configOption())
    .addHelpText("after", QEMU)
    .action(async (uris, flags) => (await import("./action.ts")).printQemu(uris, flags));
  print
    .command("libvirt")
    .summary("elements of a libvirt domain")
    .description("Prints a <disk> element for each NBD export; libvirt 9.9 or newer for the reconnecting.")
    .argument("<uris...>", "an NBD URI for each disk")
    .option("--stop-on-error", "an I/O error stops the guest, as --on-source-loss=pause needs it")
    .addOption(configOption())
    .action(async (uris, flags) => (await import("./action.ts")).printLibvirt(uris, flags));
  print
    .command("systemd")
    .summary("a systemd unit")
    .description("Prints a unit that runs serve, clone, source or dest with the words after --, from this folder.")
    .argument("<words...>", "the command, with its arguments")
    .addOption(configOption())
    .addHelpText("after", SYSTEMD)
    .action(async (words) => (await import("./action.ts")).printSystemd(words));
}
