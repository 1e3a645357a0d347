/**
 * Kernel and initramfs of the guest. `scripts/guest-image` makes them once, from Debian's packages, and says how; the demo runs
 * it, and says so before anything is downloaded.
 */
import { spawn } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync, readFileSync } from "node:fs";
import { homedir } from "node:os";
import { dirname, join } from "node:path";
import { hasProgram } from "../../os/programs.ts";
import { DemoFailure } from "../failure.ts";

const SCRIPT = "scripts/guest-image";
const RECIPE_CHARACTERS = 16;
const BUILD_MS_MAX = 300_000;
/** Programs, and Debian's packages that have them. */
const NEEDED = [
  ["qemu-system-x86_64", "qemu-system-x86"],
  ["setpriv", "util-linux"],
  ["mkfs.ext4", "e2fsprogs"],
  ["e2fsck", "e2fsprogs"],
] as const;
const NEEDED_TO_BUILD = [
  ["busybox", "busybox-static"],
  ["cpio", "cpio"],
  ["apt-get", "apt"],
] as const;

type Program = readonly [name: string, debianPackage: string];

export interface GuestImagePlace {
  /** The program's own main file. */
  readonly main: string;
  readonly environment: NodeJS.ProcessEnv;
  readonly write: (text: string) => void;
}

/** Resolves to the folder with `vmlinuz` and `initramfs`. Rejects with `DemoFailure`, when this machine lacks something. */
export async function findGuestImage({ main, environment, write }: GuestImagePlace): Promise<string> {
  const script = findScript(main);
  requirePrograms(NEEDED, environment);
  const folder = folderOf(environment);
  if (isBuilt(folder, script)) return folder;
  requirePrograms(NEEDED_TO_BUILD, environment);
  write(
    `The guest is made first, once: ${SCRIPT} downloads Debian's package linux-image-cloud-amd64 with apt-get (about 30 MB),\n` +
      `takes its kernel, adds busybox, and leaves both in ${folder}.\n`,
  );
  await build(script, environment);
  return folder;
}

/** The checkout or package that the program is part of. */
function findScript(main: string): string {
  for (let folder = dirname(main); folder !== dirname(folder); folder = dirname(folder)) {
    const script = join(folder, SCRIPT);
    if (existsSync(script)) return script;
  }
  throw lacking(`there is no ${SCRIPT} beside the program`, "run the demo of a checkout of blockferry");
}

function requirePrograms(programs: readonly Program[], { PATH = "" }: NodeJS.ProcessEnv): void {
  const missing = programs.filter(([name]) => !hasProgram(name, PATH, ["/usr/sbin", "/sbin"]));
  if (missing.length === 0) return;
  const packages = [...new Set(missing.map(([, name]) => name))].join(" ");
  throw lacking(
    `there is no ${missing.map(([name]) => name).join(", ")} here`,
    `on Debian: apt-get install ${packages}`,
  );
}

function folderOf(environment: NodeJS.ProcessEnv): string {
  const { BLOCKFERRY_GUEST: told, XDG_CACHE_HOME: cache = join(environment["HOME"] ?? homedir(), ".cache") } =
    environment;
  return told ?? join(cache, "blockferry/guest");
}

/** As the script judges it. */
function isBuilt(folder: string, script: string): boolean {
  const recipe = createHash("sha256").update(readFileSync(script)).digest("hex").slice(0, RECIPE_CHARACTERS);
  const path = join(folder, "recipe");
  return existsSync(path) && readFileSync(path, "latin1").trim() === recipe;
}

async function build(script: string, environment: NodeJS.ProcessEnv): Promise<void> {
  const child = spawn(script, { env: environment, stdio: ["ignore", "ignore", "pipe"], timeout: BUILD_MS_MAX });
  let said = "";
  child.stderr.setEncoding("utf8").on("data", (text: string) => {
    said += text;
  });
  const exitCode = await new Promise<number | null>((resolve, reject) => {
    child.once("error", reject);
    child.once("close", resolve);
  });
  if (exitCode === 0) return;
  // It ends with what it lacks, and what to do.
  const lines = said.trim().split("\n");
  const hint = lines
    .findLast((line) => line.startsWith("  do:"))
    ?.slice("  do:".length)
    .trim();
  const why = lines
    .findLast((line) => line.startsWith("guest-image:"))
    ?.slice("guest-image:".length)
    .trim();
  throw lacking(why ?? lines.at(-1) ?? `${SCRIPT} has ended with ${exitCode}`, hint ?? `run ${SCRIPT} and see`);
}

function lacking(why: string, hint: string): DemoFailure {
  return new DemoFailure("there is no guest to move", why, hint, "setup");
}
