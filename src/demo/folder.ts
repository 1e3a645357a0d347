/** Where a demo has its two hosts, and of which nothing is left. */
import { rmSync } from "node:fs";
import { mkdir, mkdtemp, rm } from "node:fs/promises";
import { constants } from "node:os";
import { join } from "node:path";

/** `work` gets a new folder in `directory`, with the folders "a" and "b" in it; it goes away however `work` ends. */
export async function inFolder<T>(directory: string, work: (folder: string) => Promise<T>): Promise<T> {
  const folder = await mkdtemp(join(directory, "blockferry-demo-"));
  // Our processes end with us.
  const leaveNothing = (signal: "SIGINT" | "SIGTERM"): void => {
    rmSync(folder, { recursive: true, force: true });
    process.exit(128 + constants.signals[signal]);
  };
  process.once("SIGINT", leaveNothing);
  process.once("SIGTERM", leaveNothing);
  try {
    for (const host of ["a", "b"]) await mkdir(join(folder, host), { mode: 0o700 });
    return await work(folder);
  } finally {
    process.off("SIGINT", leaveNothing);
    process.off("SIGTERM", leaveNothing);
    await rm(folder, { recursive: true, force: true });
  }
}
