/** Finds out, for a message, which processes have a file open and hold a lock on it. A best effort: /proc shows all to root only. */
import { readdir, readFile, readlink, realpath } from "node:fs/promises";

/** Enough for a message. */
const NAMED_MAX = 3;

/** "qemu-system-x86 (pid 4711)" and so on; empty when nobody can be named. */
export async function lockHolders(path: string): Promise<string[]> {
  const target = await realpath(path).catch(() => path);
  const holders: string[] = [];
  for (const pid of await list("/proc")) {
    if (!/^\d+$/.test(pid) || !(await holdsLock(pid, target))) continue;
    const name = (await text(`/proc/${pid}/comm`)).trim();
    holders.push(Number(pid) === process.pid ? "this very process" : `${name || "a process"} (pid ${pid})`);
    if (holders.length === NAMED_MAX) break;
  }
  return holders;
}

async function holdsLock(pid: string, target: string): Promise<boolean> {
  for (const fd of await list(`/proc/${pid}/fd`)) {
    // Names are compared, not files: to stat another process's files could mean to wait for its network.
    const name = await readlink(`/proc/${pid}/fd/${fd}`).catch(() => "");
    if (name === target && /^lock:/m.test(await text(`/proc/${pid}/fdinfo/${fd}`))) return true;
  }
  return false;
}

function list(directory: string): Promise<string[]> {
  return readdir(directory).catch(() => []);
}

function text(path: string): Promise<string> {
  return readFile(path, "latin1").catch(() => "");
}
