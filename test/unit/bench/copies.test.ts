import { open, readdir, stat, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { expect, onTestFinished, test } from "vitest";
import { compileC } from "../../../bench/lib/c-program.ts";
import { Pattern } from "../../../bench/lib/pattern.ts";
import { createPatternFile, createSparseFile, touchMemory } from "../../../bench/lib/prepare.ts";
import { runTool, temporaryFolder } from "../../../bench/lib/process.ts";
import { verifyFile, WRITTEN_BYTES } from "../../../bench/lib/verify.ts";

const LIMIT_PROGRAM = fileURLToPath(new URL("../../../bench/limit/copy-loop.c", import.meta.url));
const SIZE = 3 << 20;
const original = new Pattern("original");
const guest = new Pattern("guest", WRITTEN_BYTES);

function folder(): string {
  const made = temporaryFolder();
  onTestFinished(() => made.remove());
  return made.path;
}

async function overwrite(path: string, offset: number, bytes: Uint8Array): Promise<void> {
  await using file = await open(path, "r+");
  await file.write(bytes, 0, bytes.length, offset);
}

test("a disk with blocks that the guest wrote is right when each block is the guest's, and nothing else is", async () => {
  const path = join(folder(), "disk");
  await createPatternFile(path, SIZE, original);
  const all = { offset: 0, length: SIZE };
  const offsets = new Set([0, (1 << 20) - WRITTEN_BYTES, SIZE - WRITTEN_BYTES]);
  for (const offset of offsets) await overwrite(path, offset, guest.expected(offset, WRITTEN_BYTES));
  await verifyFile(path, all, original, { pattern: guest, offsets });
  await expect(verifyFile(path, all, original)).rejects.toThrow(/"original"/);

  await overwrite(path, SIZE - 1, Buffer.from([0]));
  await expect(verifyFile(path, all, original, { pattern: guest, offsets })).rejects.toThrow(/3145727.*"guest"/);
  const lost = new Set([...offsets, 2 * WRITTEN_BYTES]);
  await expect(verifyFile(path, all, original, { pattern: guest, offsets: lost })).rejects.toThrow(/82\d\d.*"guest"/);
});

test("a sparse disk holds its data where they belong and takes up little more", async () => {
  const path = join(folder(), "disk");
  const ranges = [
    { offset: 0, length: 4096 },
    { offset: 2 ** 32 - 65_536, length: 65_536 },
  ];
  await createSparseFile(path, 2 ** 32, ranges, original);
  for (const range of ranges) await verifyFile(path, range, original);
  await expect(verifyFile(path, { offset: 4096, length: 4096 }, original)).rejects.toThrow(/409\d/);
  const { size, blocks } = await stat(path);
  expect(size).toBe(2 ** 32);
  expect(blocks * 512).toBeLessThan(1 << 20);
});

test("touching memory leaves nothing behind", async () => {
  const path = folder();
  await touchMemory(path, 3 << 20);
  expect(await readdir(path)).toEqual([]);
});

test("the C loop copies every byte, and accounts for both of its sides", async ({ skip }) => {
  const path = folder();
  const compiled = await compileC(LIMIT_PROGRAM, path);
  if ("missing" in compiled) return skip(compiled.missing);
  await createPatternFile(join(path, "from"), SIZE + 4096, original);
  const argv = [compiled.path, join(path, "from"), join(path, "to")] as const;
  const { stdout } = await runTool({ argv: [...argv], timeoutMs: 20_000 });
  expect(JSON.parse(stdout)).toEqual({ sender: expect.any(Number), receiver: expect.any(Number) });
  await verifyFile(join(path, "to"), { offset: 0, length: SIZE + 4096 }, original);
  const failing = runTool({ argv: [compiled.path, join(path, "none"), join(path, "to")], timeoutMs: 2000 });
  await expect(failing).rejects.toThrow(/copy-loop/);
});

test("a program that cannot be compiled is missing, and the compiler's complaint is the reason", async () => {
  const path = folder();
  const source = join(path, "broken.c");
  await writeFile(source, "int main(void) { return nothing; }\n");
  const compiled = await compileC(source, path);
  expect(compiled).toMatchObject({ missing: expect.stringMatching(/cc failed.*install a C compiler/s) });
});
