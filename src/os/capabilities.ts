/**
 * What this host, this build and the file system of one directory can do, found out by doing it to a file there.
 * For `blockferry doctor`: nothing that is missing is missed silently.
 */
import { randomUUID } from "node:crypto";
import { closeSync, ftruncateSync, openSync, statfsSync, unlinkSync, writeSync } from "node:fs";
import { join } from "node:path";
import { describe, fileError } from "./file-error.ts";
import { isLocal } from "./file-kind.ts";
import { ByteLocks } from "./lock-bytes.ts";
import { flockFile, LOCK_EX, LOCK_NB } from "./locks.ts";
import { loadNative, type NativeResult } from "./native.ts";
import { NativeCalls } from "./native-calls.ts";
import { NowaitReader } from "./native-now.ts";

export interface Capability {
  readonly name: string;
  /** "fallback": it works, more slowly or with less, as `detail` says. */
  readonly state: "native" | "fallback" | "unavailable";
  readonly detail: string;
}

const PROBE_BYTES = 2 ** 20;
const DATA_BYTES = 2 ** 16;

/** Two descriptors of one file of `PROBE_BYTES` that begins with `DATA_BYTES` of data. */
interface Probed {
  readonly path: string;
  readonly fd: number;
  readonly otherFd: number;
}

interface Probe {
  readonly name: string;
  /** Why it cannot be had; undefined when it can. */
  try(calls: NativeCalls, probed: Probed): Promise<string | undefined>;
  /** What becomes of it then. */
  readonly without: Pick<Capability, "state" | "detail">;
}

const PROBES: readonly Probe[] = [
  {
    name: "reads from the page cache (preadv2 RWF_NOWAIT)",
    try: async (calls, { fd }) => {
      const reader = NowaitReader.create(calls.native);
      if (!reader) return "the C library has no preadv2";
      // Written a moment ago, so it is in the page cache.
      return failure(reader.read(fd, 0, new Uint8Array(4096)));
    },
    without: { state: "fallback", detail: "every read goes through the thread pool" },
  },
  {
    name: "data and holes (SEEK_DATA, SEEK_HOLE)",
    try: async (calls, { fd }) => {
      const hole = await calls.seekHole(fd, 0);
      return failure(hole) ?? (hole < PROBE_BYTES ? undefined : "the file system reports everything as data");
    },
    without: {
      state: "fallback",
      detail: "all of an image counts as data; a clone finds its holes by reading them: slow",
    },
  },
  {
    name: "zeroing (fallocate ZERO_RANGE)",
    try: async (calls, { fd }) => failure(await calls.zeroRange(fd, 0, 4096)),
    without: { state: "fallback", detail: "zeroes are written" },
  },
  {
    name: "giving space back (fallocate PUNCH_HOLE)",
    try: async (calls, { fd }) => failure(await calls.punchHole(fd, 0, 4096)),
    without: { state: "fallback", detail: "zeroes are written; discards give nothing back" },
  },
  {
    name: "read-ahead (posix_fadvise)",
    try: async (calls, { fd }) => failure((await calls.willNeed(fd, 0, PROBE_BYTES)) ?? 0),
    without: { state: "unavailable", detail: "left to the kernel" },
  },
  {
    name: "early write-back (sync_file_range)",
    try: async (calls, { fd }) => failure((await calls.startWriteback(fd, 0, PROBE_BYTES)) ?? 0),
    without: { state: "unavailable", detail: "left to the kernel: a flush may find more to do" },
  },
  {
    name: "image locks that QEMU heeds (fcntl F_OFD_SETLK)",
    try: tryByteLocks,
    without: { state: "unavailable", detail: "nothing keeps QEMU from opening an image that is in use here" },
  },
];

/** `FileError` when no file can be created in `directory`. */
export async function probeCapabilities(
  directory: string,
  native: NativeResult = loadNative(),
): Promise<readonly Capability[]> {
  const calls = native.state === "loaded" ? new NativeCalls(native.native) : undefined;
  const reason = native.state === "loaded" ? "" : native.reason;
  const found: Capability[] = [
    native.state === "loaded"
      ? { name: "native calls", state: "native", detail: "koffi is loaded" }
      : { name: "native calls", state: "unavailable", detail: reason },
  ];
  const probed = createProbed(directory);
  try {
    for (const probe of PROBES) {
      const why = calls ? await probe.try(calls, probed) : "no native calls";
      const { state, detail } = probe.without;
      if (why === undefined) found.push({ name: probe.name, state: "native", detail: "works here" });
      else found.push({ name: probe.name, state, detail: `${detail} (${why})` });
    }
    found.push(await probeFlock(probed, calls), probeSynchronousWrites(directory));
  } finally {
    closeSync(probed.otherFd);
    closeSync(probed.fd);
  }
  return found;
}

/** The name is gone as soon as the file is open, so that nothing is left behind whatever happens. */
function createProbed(directory: string): Probed {
  const path = join(directory, `.blockferry-probe-${randomUUID()}`);
  let fd: number | undefined;
  try {
    fd = openSync(path, "wx+", 0o600);
    const otherFd = openSync(path, "r+");
    unlinkSync(path);
    writeSync(fd, new Uint8Array(DATA_BYTES).fill(0x5a));
    ftruncateSync(fd, PROBE_BYTES);
    return { path, fd, otherFd };
  } catch (error) {
    if (fd !== undefined) closeSync(fd);
    throw fileError(`cannot try out the file system of ${directory}`, error);
  }
}

function failure(result: number): string | undefined {
  if (result >= 0) return undefined;
  const { code, text } = describe(-result);
  return `${text}, ${code}`;
}

/** Two opens of one file, in one process too, must get in each other's way. */
async function tryByteLocks(calls: NativeCalls, { path, fd, otherFd }: Probed): Promise<string | undefined> {
  const locks = new ByteLocks(fd, path, { calls, local: false });
  const outcome = await locks.lock("exclusive");
  const others = new ByteLocks(otherFd, path, { calls, local: false });
  const otherOutcome = await others.lock("exclusive");
  await locks.unlock();
  await others.unlock();
  if (outcome !== "locked") return `the file system says "${outcome}"`;
  return otherOutcome === "conflict" ? undefined : "the file system grants them to everybody";
}

async function probeFlock(probed: Probed, calls: NativeCalls | undefined): Promise<Capability> {
  const name = "image locks among ourselves (flock)";
  const outcome = await flockFile({ ...probed, local: false }, LOCK_EX | LOCK_NB, calls);
  if (outcome === "locked" && calls) return { name, state: "native", detail: "works here" };
  if (outcome === "locked") return { name, state: "fallback", detail: "taken by the program flock (no native calls)" };
  return {
    name,
    state: "unavailable",
    detail: calls ? "not on this file system" : "no native calls, no program flock",
  };
}

function probeSynchronousWrites(directory: string): Capability {
  const name = "writes on the event loop's thread";
  const known = isLocal("regular", statfsSync(directory).type);
  if (known) return { name, state: "native", detail: "while little is dirty" };
  const detail = "every write goes through the thread pool (this kind of file system may make a writer wait)";
  return { name, state: "fallback", detail };
}
