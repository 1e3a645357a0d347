/**
 * An NBD export as a block device of this host, without the kernel's nbd module: QEMU's storage daemon shows it as a
 * file (FUSE), and a loop device makes a disk of that. For root. What is set up is taken down in reverse, also when
 * setting up fails half-way.
 */
import { spawn } from "node:child_process";
import { once } from "node:events";
import {
  accessSync,
  closeSync,
  constants,
  fsyncSync,
  mkdirSync,
  openSync,
  statSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import { expect } from "vitest";
import { runOk } from "./run.ts";
import type { TempDir } from "./temp-dir.ts";
import { itWith, requireHost, requireRoot } from "./tools.ts";

/** Programs that `attachExport` and `mountDevice` call, and those that make and check what is mounted. */
const MOUNT_TOOLS = ["qemu-storage-daemon", "losetup", "mount", "umount", "mkfs.ext4", "e2fsck", "fstrim"];

const MOUNT_DEVICES = ["/dev/fuse", "/dev/loop-control"];

/** `itWith`, for tests that mount an export: with `MOUNT_TOOLS`, `tools`, root and the devices that it takes. */
export function itMounts(tools: readonly string[], title: string, body: () => Promise<void>): void {
  itWith([...MOUNT_TOOLS, ...tools], title, async (context) => {
    requireRoot(context, "mounting an export");
    const lacking = MOUNT_DEVICES.filter((path) => !isAccessible(path));
    requireHost(context, lacking.length > 0 ? `mounting an export needs ${lacking.join(" and ")}` : undefined);
    await body();
  });
}

/** Writes a file, and has its file system make it durable. */
export function writeSynced(path: string, contents: Buffer): void {
  const fd = openSync(path, "w");
  for (let at = 0; at < contents.length; ) at += writeSync(fd, contents, at);
  fsyncSync(fd);
  closeSync(fd);
}

function isAccessible(path: string): boolean {
  try {
    accessSync(path, constants.R_OK | constants.W_OK);
    return true;
  } catch {
    return false;
  }
}

/** A resource with the way to be rid of it. */
export interface Attached extends AsyncDisposable {
  readonly path: string;
}

/** Makes the default export behind `socket` a block device; `path` is the device. Files go to `folder`. */
export async function attachExport(socket: string, sizeBytes: number, folder: TempDir): Promise<Attached> {
  await using stack = new AsyncDisposableStack();
  const file = folder.file("export");
  writeFileSync(file, "");
  const blockdev = `driver=nbd,node-name=n,server.type=unix,server.path=${socket},export=,discard=unmap`;
  const fuse = `type=fuse,id=e,node-name=n,mountpoint=${file},writable=on,growable=off`;
  const daemon = spawn("qemu-storage-daemon", ["--blockdev", blockdev, "--export", fuse], { stdio: "inherit" });
  const ended = once(daemon, "exit");
  stack.defer(async () => {
    // SIGTERM: it flushes, unmounts and goes.
    daemon.kill("SIGTERM");
    await ended;
  });
  await expect.poll(() => statSync(file).size).toBe(sizeBytes);
  const device = (await runOk(["losetup", "--find", "--show", file])).trim();
  stack.defer(() => runOk(["losetup", "--detach", device]).then(() => undefined));
  return disposedWith(device, stack.move());
}

/** Mounts `device`; `path` is the folder. */
export async function mountDevice(device: string, folder: TempDir): Promise<Attached> {
  const path = folder.file("mnt");
  mkdirSync(path, { recursive: true });
  await runOk(["mount", device, path]);
  const stack = new AsyncDisposableStack();
  stack.defer(() => runOk(["umount", path]).then(() => undefined));
  return disposedWith(path, stack);
}

function disposedWith(path: string, stack: AsyncDisposableStack): Attached {
  return { path, [Symbol.asyncDispose]: () => stack.disposeAsync() };
}
