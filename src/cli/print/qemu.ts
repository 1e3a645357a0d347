/** Arguments of QEMU, one a line, for a shell. Pure. Source: qemu(1), and its QAPI schema for -blockdev and -device. */
import { shellQuote } from "../serving/uri.ts";
import { type DiskStyle, OPEN_SECONDS, type PrintedDisk, RECONNECT_SECONDS, tlsFolder } from "./disk.ts";

export interface QemuStyle extends DiskStyle {
  readonly incoming: boolean;
  /** Path of a socket. */
  readonly qmp: string | undefined;
}

export function renderQemu(disks: readonly PrintedDisk[], { stopOnError, incoming, qmp }: QemuStyle): string {
  const lines = disks.flatMap((disk) => diskArguments(disk, stopOnError));
  if (qmp !== undefined) lines.push(["-qmp", `unix:${qmp.replaceAll(",", ",,")},server=on,wait=off`]);
  if (incoming) lines.push(["-S", "-incoming", "defer"]);
  return `${lines.map((words) => words.map(shellQuote).join(" ")).join(" \\\n")}\n`;
}

function diskArguments({ uri, id }: PrintedDisk, stopOnError: boolean): string[][] {
  const { address, exportName, user, tlsHostname } = uri;
  const tls = tlsFolder(uri);
  const credentials = { id: `tls-${id}`, endpoint: "client", dir: tls?.folder };
  const qomType = tls?.kind === "psk" ? "tls-creds-psk" : "tls-creds-x509";
  const object = {
    "qom-type": qomType,
    ...credentials,
    ...(tls?.kind === "psk" && user !== undefined && { username: user }),
  };
  const server =
    address.kind === "unix"
      ? { type: "unix", path: address.path }
      : { type: "inet", host: address.host, port: String(address.port) };
  const blockdev = {
    ...{ driver: "nbd", "node-name": id, server, export: exportName },
    ...(tls && { "tls-creds": credentials.id }),
    ...(tls && tlsHostname !== undefined && { "tls-hostname": tlsHostname }),
    ...{ "reconnect-delay": RECONNECT_SECONDS, "open-timeout": OPEN_SECONDS, discard: "unmap" },
  };
  const onError = stopOnError ? { rerror: "stop", werror: "stop" } : {};
  const device = { driver: "virtio-blk-pci", id: `device-${id}`, drive: id, ...onError };
  return [
    ...(tls === undefined ? [] : [["-object", JSON.stringify(object)]]),
    ["-blockdev", JSON.stringify(blockdev)],
    ["-device", JSON.stringify(device)],
  ];
}
