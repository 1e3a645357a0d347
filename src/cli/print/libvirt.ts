/** `<disk>` elements of a libvirt domain. Pure. Source: libvirt's formatdomain, "Hard drives, floppy disks, CDROMs". */
import { usageError } from "../cli-error.ts";
import { type DiskStyle, type PrintedDisk, RECONNECT_SECONDS } from "./disk.ts";

const LETTERS = "abcdefghijklmnopqrstuvwxyz";

export function renderLibvirt(disks: readonly PrintedDisk[], style: DiskStyle): string {
  if (disks.length > LETTERS.length) throw usageError("too many disks", "a domain is shown with 26", "print fewer");
  return disks.map((disk, index) => diskElement(disk, `vd${LETTERS[index]}`, style)).join("");
}

/** Credentials are libvirt's own affair: it takes them from its configuration, for all NBD disks alike. */
function diskElement({ uri }: PrintedDisk, target: string, { stopOnError }: DiskStyle): string {
  const { address, exportName, secure } = uri;
  const where =
    address.kind === "unix"
      ? `transport='unix' socket='${xml(address.path)}'`
      : `name='${xml(address.host)}' port='${address.port}'`;
  const onError = stopOnError ? " error_policy='stop' rerror_policy='stop'" : "";
  return [
    "<disk type='network' device='disk'>",
    `  <driver name='qemu' type='raw' discard='unmap'${onError}/>`,
    `  <source protocol='nbd'${exportName === "" ? "" : ` name='${xml(exportName)}'`}${secure ? " tls='yes'" : ""}>`,
    `    <host ${where}/>`,
    `    <reconnect delay='${RECONNECT_SECONDS}'/>`,
    "  </source>",
    `  <target dev='${target}' bus='virtio'/>`,
    "</disk>\n",
  ].join("\n");
}

const ENTITIES: Readonly<Record<string, string>> = {
  "&": "&amp;",
  "<": "&lt;",
  ">": "&gt;",
  "'": "&apos;",
  '"': "&quot;",
};

function xml(text: string): string {
  return text.replaceAll(/[&<>'"]/g, (character) => ENTITIES[character] ?? "");
}
