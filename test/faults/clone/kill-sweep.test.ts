/**
 * SIGKILL at system calls of the real `blockferry clone`, while a guest writes through it: the guest lives on, reconnects
 * to the next process, and must find every write that was acknowledged, flushed or not, and what the source holds
 * everywhere else. One sweep per system call; every kill has to have happened.
 *
 * With one thread in the pool and `strace` counting per thread, the N-th call of a name is about the same place each time.
 */
import { readFileSync, writeFileSync } from "node:fs";
import { describe, expect, type TestContext } from "vitest";
import type { NbdClient } from "../../../src/nbd/client/client.ts";
import { Oracle } from "../../sim/oracle.ts";
import { drawHabits, Guest } from "../../sim/workload.ts";
import { type CloneProcess, startClone, WITHOUT_LAUNCHER } from "../../support/clone-process.ts";
import { LoopDevice } from "../../support/loop-device.ts";
import { nbdkitIn } from "../../support/peers.ts";
import { counts, Prng, runSeed } from "../../support/seed.ts";
import { tempDir } from "../../support/temp-dir.ts";
import { itWith, requireAsked, requireRoot } from "../../support/tools.ts";

const SIZE_BYTES = 1024 * 1024;
const CELL_BYTES = 512;
const REQUESTS = 120;
/** The calls that change files, and by which replies and requests leave; the last N at which to kill. */
const SWEEPS: readonly [syscall: string, last: number][] = [
  ["pwrite64", 120],
  ["fdatasync", 24],
  ["fallocate", 12],
  ["sendto", 60],
  ["write,writev", 60],
  ["openat", 12],
  ["ftruncate", 3],
];
const POINTS = counts({ local: 1, ci: 29 });
/** Of a copy onto a block device, where not all of the disk is until the end. */
const DEVICE_SWEEPS: typeof SWEEPS = [
  ["pwrite64", 120],
  ["fdatasync", 28],
  ["fallocate", 12],
  ["unlink,unlinkat", 2],
];
const DEVICE_POINTS = counts({ local: 1, ci: 15 });

interface Place {
  readonly source: string;
  readonly image: string;
  readonly socket: string;
  readonly env: Readonly<Record<string, string>>;
}

type Kind = "file" | "device";

/** A guest's life until its disk is gone. */
async function live(clone: CloneProcess, oracle: Oracle, rng: Prng): Promise<void> {
  const drawn = drawHabits(rng, oracle.cells);
  // Some of everything: a call that nobody makes is none to be killed at.
  const weights = { ...drawn.weights, zero: 2 + drawn.weights.zero, discard: 1 + drawn.weights.discard };
  const habits = { ...drawn, weights, threads: 3, cellsMax: 40, regionCells: oracle.cells };
  const guest = new Guest({ oracle, rng, habits, lingers: true });
  let client: NbdClient;
  try {
    client = await clone.open();
  } catch {
    return;
  }
  await guest.run([client], REQUESTS);
  client.drop("the guest has done enough");
}

async function wholeDisk(clone: CloneProcess): Promise<Uint8Array> {
  await using client = await clone.open();
  const bytes = new Uint8Array(SIZE_BYTES);
  await client.read(0, bytes);
  return bytes;
}

/** `strace` would let go of its child when told to stop: the child is told. */
function endChildOf(pid: number): void {
  try {
    const children = readFileSync(`/proc/${pid}/task/${pid}/children`, "latin1").trim();
    if (children !== "") process.kill(Number(children), "SIGTERM");
  } catch {
    // Both have gone already.
  }
}

/** True: it was killed where it was to be. */
async function killedAt(
  place: Place,
  oracle: Oracle,
  options: { syscall: string; nth: number; rng: Prng },
): Promise<boolean> {
  const { syscall, nth, rng } = options;
  const trace = [
    "-f",
    "-qq",
    "-o",
    "/dev/null",
    "-e",
    `trace=${syscall}`,
    "-e",
    `inject=${syscall}:signal=SIGKILL:when=${nth}`,
  ];
  let clone: CloneProcess;
  try {
    const flags = ["--overwrite-device", "--rate", `${rng.pick([256, 1024, 65_536])}K`];
    clone = await startClone({
      ...place,
      flags,
      program: ["strace", ...trace, ...WITHOUT_LAUNCHER],
      env: { ...place.env, UV_THREADPOOL_SIZE: "1" },
    });
  } catch (error) {
    // Killed before it served; nobody has been promised anything then.
    expect(String(error)).toContain("ended with 137");
    return true;
  }
  await using running = clone;
  await live(running, oracle, rng);
  endChildOf(running.pid);
  return (await running.ended) === 137;
}

/** One life, one kill, another life. True: it was killed where it was to be. */
async function killPoint(syscall: string, nth: number, kind: Kind): Promise<boolean> {
  const rng = new Prng(runSeed(), `${syscall} ${nth}`);
  using folder = tempDir();
  using device = kind === "file" ? undefined : LoopDevice.make(folder, "disk.raw", SIZE_BYTES + 65_536);
  const oracle = new Oracle({ sizeBytes: SIZE_BYTES, cellBytes: CELL_BYTES });
  writeFileSync(folder.file("source.raw"), oracle.baseContent());
  const serveSource = () => nbdkitIn(folder, "-r", "file", folder.file("source.raw"));
  const place = {
    source: `nbd+unix:///?socket=${folder.file("nbd")}`,
    image: folder.file("disk.raw"),
    socket: folder.file("s"),
    env: { BLOCKFERRY_DEVICES_DIR: folder.file("devices") },
  };
  let killed: boolean;
  {
    await using _ = await serveSource();
    killed = await killedAt(place, oracle, { syscall, nth, rng });
  }
  // A new one: nbdkit has been seen to end when its client is killed while it connects.
  await using source = await serveSource();

  await using next = await startClone({ ...place, flags: ["--overwrite-device", "--rate", "4M"] });
  oracle.recover("process-kill", await wholeDisk(next));
  await live(next, oracle, rng);
  await next.call("set-speed", { bytesPerSecond: null });
  await next.hydrated();
  await source.kill();
  expect(await next.stop(), next.output).toBe(0);
  // The image stands alone.
  const content = readFileSync(device?.backing ?? place.image);
  expect(content.length).toBe(device === undefined ? SIZE_BYTES : SIZE_BYTES + 65_536);
  oracle.recover("process-kill", content.subarray(0, SIZE_BYTES));
  return killed;
}

/** Kills at about the `nth` call; earlier, when there were not so many in that life. Resolves to where it was. */
async function killNear(syscall: string, nth: number, kind: Kind): Promise<number> {
  for (let at = nth; at > 0; at = Math.floor(at / 2)) if (await killPoint(syscall, at, kind)) return at;
  throw new Error(`no ${syscall} was there to be killed at`);
}

async function sweep([syscall, last]: (typeof SWEEPS)[number], points: number, kind: Kind): Promise<void> {
  const wanted = Array.from({ length: points }, (_, point) => 1 + Math.floor((point * last) / points));
  const killedAtCalls: number[] = [];
  const one = async (): Promise<void> => {
    for (let nth = wanted.shift(); nth !== undefined; nth = wanted.shift()) {
      killedAtCalls.push(await killNear(syscall, nth, kind));
    }
  };
  await Promise.all([one(), one()]);
  console.log(`${syscall}: killed at ${killedAtCalls.join(" ")}`);
  expect(killedAtCalls).toHaveLength(points);
}

describe("a guest whose clone is killed at a system call finds everything that was acknowledged", () => {
  for (const calls of SWEEPS) {
    itWith(["strace", "nbdkit"], `${calls[0]}, ${POINTS} points`, () => sweep(calls, POINTS, "file"), 600_000);
  }

  for (const calls of DEVICE_SWEEPS) {
    const title = `${calls[0]} onto a block device, ${DEVICE_POINTS} points`;
    itWith(
      ["strace", "nbdkit", "losetup"],
      title,
      async (context: TestContext) => {
        requireAsked(context, "BLOCKFERRY_DEVICES", "many lives of a copy");
        requireRoot(context, "attaching a loop device");
        await sweep(calls, DEVICE_POINTS, "device");
      },
      600_000,
    );
  }
});
