/** Where the guest of this host finds its disks. */
import { dirname } from "node:path";
import type { BlockDevice } from "../../block/device.ts";
import type { MetaContext, NbdExport } from "../../nbd/server/export.ts";
import { makeRuntimeDirectory, runtimeDirectory } from "../instance/runtime-directory.ts";
import { printableJson } from "../printable.ts";
import type { ServePlan } from "../serving/plan.ts";
import { formatUri, type ServedAs } from "../serving/uri.ts";

export interface GuestDisk {
  readonly name: string;
  readonly guest: BlockDevice;
  readonly contexts?: readonly MetaContext[];
}

/** Each disk is the export of its name, and of no other. */
export function guestExports(disks: readonly GuestDisk[]): NbdExport[] {
  return disks.map(({ name, guest, contexts = [] }) => ({ name, device: guest, readOnly: false, contexts }));
}

/** The usual place of the socket is made; one that was chosen has to be there. */
export function makeSocketPlace({ listen }: ServePlan): void {
  const uid = process.getuid?.() ?? 0;
  if (listen.kind === "unix" && dirname(listen.path) === runtimeDirectory(process.env, uid)) {
    makeRuntimeDirectory(process.env, uid);
  }
}

export interface ReadyOptions {
  readonly json: boolean;
  /** Lines after the URIs; with JSON, keys. */
  readonly extra?: Readonly<Record<string, string>>;
}

/** The URI of every disk, in their order, and what is printed when clients can connect. */
export function readyLines(
  disks: readonly { readonly name: string }[],
  served: ServedAs,
  { json, extra = {} }: ReadyOptions,
): { readonly uris: string[]; readonly text: string } {
  const byName = Object.fromEntries(disks.map(({ name }) => [name, formatUri({ ...served, exportName: name })]));
  const uris = Object.values(byName);
  const text = json
    ? printableJson({ uris: byName, pid: process.pid, ...extra })
    : [...uris, ...Object.values(extra)].join("\n");
  return { uris, text };
}
