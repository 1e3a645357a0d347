/** `print`, once its words are known. */
import { existsSync } from "node:fs";
import { dirname, join } from "node:path";
import { print } from "../verbs/actions.ts";
import { planPrintedDisks } from "./disk.ts";
import { renderLibvirt } from "./libvirt.ts";
import { renderQemu } from "./qemu.ts";
import { renderUnit } from "./systemd.ts";

interface DiskFlags {
  readonly stopOnError?: true | boolean;
}

export async function printQemu(
  uris: readonly string[],
  { stopOnError = false, incoming = false, qmp }: DiskFlags & { incoming?: true | boolean; qmp?: string },
): Promise<void> {
  await print(renderQemu(planPrintedDisks(uris), { stopOnError, incoming, qmp }));
}

export async function printLibvirt(uris: readonly string[], { stopOnError = false }: DiskFlags): Promise<void> {
  await print(renderLibvirt(planPrintedDisks(uris), { stopOnError }));
}

export async function printSystemd(words: readonly string[]): Promise<void> {
  await print(renderUnit(words, { directory: process.cwd(), program: ownProgram() }));
}

/** The launcher, which finds a Node that will do. */
function ownProgram(): string {
  const script = process.argv[1] ?? "";
  const beside = [join(dirname(script), "../bin/blockferry"), join(dirname(script), "../../bin/blockferry")];
  return beside.find((path) => existsSync(path)) ?? script;
}
