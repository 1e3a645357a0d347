/**
 * A Linux guest of `scripts/guest-image`, as tests use it: the demo's (`src/demo/vm`), with `-accel tcg`: no privileges, no
 * hardware.
 */
import { join } from "node:path";
import type { TestContext } from "vitest";
import { type Guest, type QemuOptions, startQemu } from "../../src/demo/vm/guest.ts";
import { DISK_TOOLS } from "./guest-disk.ts";
import { run } from "./run.ts";
import type { TempDir } from "./temp-dir.ts";
import { itWith, requireAsked, requireHost } from "./tools.ts";

export type { Guest, GuestDisk } from "../../src/demo/vm/guest.ts";

const GUEST_TOOLS = ["qemu-system-x86_64", "busybox", "cpio", "setpriv", ...DISK_TOOLS];
const BUILD = join(import.meta.dirname, "../../scripts/guest-image");
const BUILD_MS_MAX = 100_000;
const TEST_MS_MAX = 120_000;

export interface GuestOptions extends Omit<QemuOptions, "image" | "qmpSocket" | "accelerator"> {
  /** For its sockets. */
  readonly folder: TempDir;
  /** In the folder; each QEMU has its own. */
  readonly name?: string;
}

/** Starts QEMU; resolves at once, while the guest boots (2 to 4 seconds). */
export async function startGuest({ folder, name = "g", ...options }: GuestOptions): Promise<Guest> {
  const image = await guestImage();
  return startQemu({ ...options, image, qmpSocket: folder.file(`${name}.qmp`), accelerator: "tcg" });
}

let building: Promise<string> | undefined;

/** The folder with kernel and initramfs, built once. */
function guestImage(): Promise<string> {
  building ??= run([BUILD], { timeoutMs: BUILD_MS_MAX }).then(({ status, stdout, stderr }) => {
    if (status === 0) return stdout.trim();
    throw new Error(`scripts/guest-image ended with ${status}\n${stderr}`);
  });
  return building;
}

/**
 * `itWith`, for tests that need a guest: with what it takes to build and boot one, and `tools` besides. They take a minute
 * together: in CI, and elsewhere when asked for.
 */
export function itBoots(tools: readonly string[], title: string, body: (context: TestContext) => Promise<void>): void {
  const test = async (context: TestContext): Promise<void> => {
    requireAsked(context, "BLOCKFERRY_GUESTS", "a real guest");
    await guestImage().catch((error: unknown) => requireHost(context, `no guest: ${(error as Error).message}`));
    await body(context);
  };
  itWith([...GUEST_TOOLS, ...tools], title, test, TEST_MS_MAX);
}
