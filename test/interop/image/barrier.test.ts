/**
 * `blockferry serve` of an image that a killed QEMU has left, while the check of its tables stands still: what waits for it,
 * what does not, and what `status` says of both.
 */
import { readFileSync } from "node:fs";
import { expect } from "vitest";
import type { Status } from "../../../src/control/status.ts";
import { blockferry } from "../../support/clone-process.ts";
import { NbdHandle } from "../../support/libnbd.ts";
import { firstDifference, pattern } from "../../support/patterns.ts";
import { run, runOk } from "../../support/run.ts";
import { type ServeProcess, startServe } from "../../support/serve-process.ts";
import { type TempDir, tempDir } from "../../support/temp-dir.ts";
import { itWith, requireHost } from "../../support/tools.ts";

const KIB = 1024;
const MIB = 1024 * KIB;
const SIZE = 64 * MIB;
/** What QEMU has written before it was killed, of one byte throughout. */
const WRITTEN = { offset: 0, length: MIB, byte: 7 };
const BLOCK = 4 * KIB;
/** Longer than any test: it ends when the tracer does. */
const HELD_MICROSECONDS = 3_600_000_000;
const TEST_MS_MAX = 120_000;
const WAIT = { timeout: 60_000, interval: 50 };

const SHAPES = [
  { format: "qcow2", options: "lazy_refcounts=on" },
  { format: "qed", options: "cluster_size=65536" },
] as const;

interface Left {
  readonly path: string;
  /** What the disk holds. */
  readonly content: Buffer;
}

/** An image that QEMU has allocated in and not closed. */
async function leftByKilledQemu(folder: TempDir, { format, options }: (typeof SHAPES)[number]): Promise<Left> {
  const path = folder.file(`disk.${format}`);
  const { offset, length, byte } = WRITTEN;
  await runOk(["qemu-img", "create", "-q", "-f", format, "-o", options, path, String(SIZE)]);
  const commands = ["-c", `write -P ${byte} ${offset} ${length}`, "-c", "sigraise 9"];
  const killed = await run(["qemu-io", "-f", format, ...commands, path]);
  expect(killed.status, killed.stderr).toBe(137);
  return { path, content: Buffer.alloc(SIZE).fill(byte, offset, offset + length) };
}

/** A tracer holds whoever asks the file where its holes are: of all that is tried here, the check alone does. */
function holding({ path }: Left): string[] {
  const inject = `inject=lseek:delay_enter=${HELD_MICROSECONDS}`;
  return ["strace", "-D", "-f", "-qq", "-o", "/dev/null", "-P", path, "-e", "trace=lseek", "-e", inject];
}

/** The tracer of a server: without it, the server goes on by itself, and can end. */
class Hold implements Disposable {
  #pid: number;

  constructor({ pid }: ServeProcess) {
    this.#pid = Number(/^TracerPid:\s+(\d+)$/m.exec(readFileSync(`/proc/${pid}/status`, "latin1"))?.[1]);
    expect(this.#pid, "the tracer").toBeGreaterThan(0);
  }

  letGo(): void {
    if (this.#pid > 0) process.kill(this.#pid, "SIGKILL");
    this.#pid = 0;
  }

  [Symbol.dispose](): void {
    this.letGo();
  }
}

async function tableCheck(control: string) {
  const { status, stdout, stderr } = await blockferry("status", "--json", "-C", control);
  expect(status, stderr).toBe(0);
  const found = (JSON.parse(stdout) as Status).disks[0]?.tableCheck;
  if (found === undefined) throw new Error(`no word of a check: ${stdout}`);
  return found;
}

for (const shape of SHAPES) {
  itWith(
    ["qemu-img", "qemu-io", "strace", "python3-libnbd"],
    `writes that allocate wait for the check of a ${shape.format}, and are told; reads and overwrites do not`,
    async (context) => {
      const without = process.env["BLOCKFERRY_NO_NATIVE"] === "1";
      requireHost(context, without ? "needs holes, which native calls find: unset BLOCKFERRY_NO_NATIVE" : undefined);
      using folder = tempDir();
      const left = await leftByKilledQemu(folder, shape);
      const { content } = left;
      const [socket, control] = [folder.file("s"), folder.file("c")];
      await using server = await startServe({
        ...{ image: left.path, socket, flags: ["-C", control], under: holding(left) },
      });
      using hold = new Hold(server);
      expect(await tableCheck(control)).toMatchObject({ waiting: 0, longestWaitSeconds: 0 });

      // Two connections, each with a write where there is nothing yet.
      const offsets = [4 * MIB, 40 * MIB + 512];
      await using stack = new AsyncDisposableStack();
      let settled = 0;
      const writes: Promise<string>[] = [];
      for (const offset of offsets) {
        const client = stack.use(await NbdHandle.connect(server.uri));
        const bytes = pattern(offset, BLOCK, 1);
        bytes.copy(content, offset);
        writes.push(client.errnoOf("pwrite", bytes, offset).finally(() => settled++));
      }
      await expect.poll(async () => (await tableCheck(control)).waiting, WAIT).toBe(2);

      await using guest = await NbdHandle.connect(server.uri);
      const over = pattern(8 * KIB + 17, BLOCK, 2);
      await guest.call("pwrite", over, 8 * KIB + 17);
      over.copy(content, 8 * KIB + 17);
      expect(firstDifference(await guest.read(MIB, 0), content.subarray(0, MIB))).toBeUndefined();
      expect(await guest.read(BLOCK, 20 * MIB)).toEqual(Buffer.alloc(BLOCK));
      await guest.call("flush");

      const meanwhile = await tableCheck(control);
      expect(meanwhile).toMatchObject({ state: "running", waiting: 2, failure: null });
      expect(meanwhile.clustersChecked).toBeLessThan(meanwhile.clustersTotal);
      expect(meanwhile.longestWaitSeconds).toBeGreaterThan(0);
      const shown = (await blockferry("status", "-C", control)).stdout;
      expect(shown).toMatch(/^ {2}tables +running \d+\.\d%; 2 waiting for it, longest \d+\.\d s$/m);
      expect(settled).toBe(0);

      hold.letGo();
      expect(await Promise.all(writes)).toEqual(["OK", "OK"]);
      const after = await tableCheck(control);
      expect(after).toMatchObject({ state: "clean", waiting: 0, failure: null });
      expect(after.clustersChecked).toBe(after.clustersTotal);
      expect(after.longestWaitSeconds).toBeGreaterThanOrEqual(meanwhile.longestWaitSeconds);
      for (const offset of offsets) expect(await guest.read(BLOCK, offset)).toEqual(pattern(offset, BLOCK, 1));
      expect(await server.stop()).toBe(0);

      const found = await runOk(["qemu-img", "check", "-f", shape.format, left.path]);
      expect(found).toContain("No errors were found on the image.");
      const raw = folder.file("raw");
      await runOk(["qemu-img", "convert", "-f", shape.format, "-O", "raw", left.path, raw]);
      expect(firstDifference(readFileSync(raw), content)).toBeUndefined();
    },
    TEST_MS_MAX,
  );
}
