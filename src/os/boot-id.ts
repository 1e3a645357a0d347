/** What tells this run of the kernel from every other one: the page cache lives as long as it does. */
import { readFile } from "node:fs/promises";

const BOOT_ID = "/proc/sys/kernel/random/boot_id";

/** A uuid. Rejects where there is no procfs. */
export async function readBootId(): Promise<string> {
  return (await readFile(BOOT_ID, "latin1")).trim();
}
