/** `--late-open`: images with tables that QEMU has open are read as QEMU has left them, whatever was seen of them before. */
import { spawn } from "node:child_process";
import { tmpdir } from "node:os";
import { createInterface } from "node:readline";
import { expect } from "vitest";
import { Cleanup } from "../../../src/cli/cleanup.ts";
import { createLog } from "../../../src/cli/log.ts";
import { planDisks } from "../../../src/cli/migration/disk-spec.ts";
import { peekDisks } from "../../../src/cli/source/images.ts";
import { createRealEnv } from "../../../src/os/real-env.ts";
import { runOk } from "../../support/run.ts";
import { tempDir } from "../../support/temp-dir.ts";
import { itWith } from "../../support/tools.ts";

const MIB = 2 ** 20;
const SIZE = 64 * MIB;
const BLOCK = 64 * 1024;
const env = createRealEnv();

/** A QEMU that has an image open, and closes it when it is disposed of. */
class OpenInQemu implements AsyncDisposable {
  readonly #child;
  readonly #lines;
  readonly #ended: Promise<unknown>;

  constructor(format: string, path: string) {
    // Its output would otherwise come in blocks.
    const args = ["-oL", "qemu-io", "-f", format, "-d", "unmap", path];
    this.#child = spawn("stdbuf", args, { stdio: ["pipe", "pipe", "inherit"] });
    this.#lines = createInterface({ input: this.#child.stdout })[Symbol.asyncIterator]();
    this.#ended = new Promise((resolve) => this.#child.once("close", resolve));
    this.#child.stdin.on("error", () => undefined);
  }

  /** Resolves when it has been written. */
  async write(offset: number, byte: number): Promise<void> {
    this.#child.stdin.write(`write -P ${byte} ${offset} ${BLOCK}\n`);
    for (;;) {
      const { value, done } = await this.#lines.next();
      if (done === true) throw new Error("qemu-io has ended");
      if (String(value).includes(`wrote ${BLOCK}/${BLOCK} bytes at offset ${offset}`)) return;
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#child.stdin.end("quit\n");
    await this.#ended;
  }
}

const SHAPES = [
  { format: "qcow2", options: "cluster_size=4096" },
  { format: "qcow2", options: "lazy_refcounts=on" },
  { format: "qed", options: "cluster_size=4096" },
] as const;

for (const { format, options } of SHAPES) {
  itWith(
    ["qemu-img", "qemu-io", "stdbuf"],
    `of a ${format} (${options}), what QEMU has written since is there, each time it is opened`,
    async () => {
      using folder = tempDir(tmpdir());
      const path = folder.file(`disk.${format}`);
      await runOk(["qemu-img", "create", "-q", "-f", format, "-o", options, path, String(SIZE)]);
      const model = new Map<number, number>();
      const log = createLog({ level: "silent", format: "json", to: 2 });
      await using cleanup = new Cleanup();
      let peeked: Awaited<ReturnType<typeof peekDisks>> | undefined;
      for (let round = 0; round < 3; round++) {
        await using qemu = new OpenInQemu(format, path);
        const places = [round * 3 * MIB, 20 * MIB + round * BLOCK, 40 * MIB];
        const write = async (index: number): Promise<void> => {
          const [offset = 0, byte] = [places[index], 1 + round * places.length + index];
          await qemu.write(offset, byte);
          model.set(offset, byte);
        };
        await write(0);
        peeked ??= await peekDisks(env, planDisks([`vda=${path}`], "/"), { log, cleanup });
        const device = peeked[0]?.device;
        if (device === undefined) throw new Error("there is no disk");
        await expect(device.open()).rejects.toMatchObject({ name: "ImageOpenError", code: "locked" });
        await write(1);
        await write(2);
        await qemu[Symbol.asyncDispose]();

        await device.open();
        const found = Buffer.alloc(BLOCK);
        for (const [offset, byte] of model) {
          await device.read(offset, found);
          expect(found, `${offset} in round ${round}`).toEqual(Buffer.alloc(BLOCK, byte));
        }
        await device.read(63 * MIB, found);
        expect(found).toEqual(Buffer.alloc(BLOCK));
        await device.shut();
      }
    },
  );
}
