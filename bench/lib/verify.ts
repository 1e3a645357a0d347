/** What every sample ends with: proof that the bytes were the right ones. All of these reject at the first wrong byte. */
import { open } from "node:fs/promises";
import { NbdProbe } from "./nbd-probe.ts";
import type { Pattern } from "./pattern.ts";
import type { Range } from "./prepare.ts";

const CHUNK_BYTES = 1 << 20;
const SPOT_BYTES = 4096;
export const WRITTEN_BYTES = 4096;

/** Blocks of `WRITTEN_BYTES`, aligned, that hold something else than the rest. */
export interface Written {
  readonly pattern: Pattern;
  readonly offsets: ReadonlySet<number>;
}

/** Compares a range of a file or block device with a pattern; blocks in `written` must hold theirs. */
export async function verifyFile(
  path: string,
  { offset, length }: Range,
  pattern: Pattern,
  written?: Written,
): Promise<void> {
  await using file = await open(path, "r");
  const buffer = Buffer.allocUnsafeSlow(CHUNK_BYTES);
  for (let done = 0; done < length; ) {
    const at = offset + done;
    const { bytesRead } = await file.read(buffer, 0, Math.min(CHUNK_BYTES, length - done), at);
    if (bytesRead === 0) throw new Error(`${path} ends at ${at}`);
    if (written !== undefined) takeOutWritten(path, { at, bytes: buffer.subarray(0, bytesRead) }, written, pattern);
    const wrong = pattern.mismatch(buffer.subarray(0, bytesRead), at);
    if (wrong >= 0) throw new Error(`${path}: the byte at ${wrong} is not that of "${pattern.tag}"`);
    done += bytesRead;
  }
}

/** Checks the written blocks among `bytes` and puts back what was there before them. */
function takeOutWritten(path: string, piece: { at: number; bytes: Buffer }, written: Written, before: Pattern): void {
  const { at, bytes } = piece;
  for (let block = at; block < at + bytes.length; block += WRITTEN_BYTES) {
    if (!written.offsets.has(block)) continue;
    const data = bytes.subarray(block - at, block - at + WRITTEN_BYTES);
    const wrong = written.pattern.mismatch(data, block);
    if (wrong >= 0) throw new Error(`${path}: the byte at ${wrong} is not that of "${written.pattern.tag}"`);
    before.expected(block, data.length).copy(data);
  }
}

/** Compares a copy with its original, byte by byte, over the original's whole length. */
export async function verifyCopy(original: string, copy: string, sizeBytes: number): Promise<void> {
  await using left = await open(original, "r");
  await using right = await open(copy, "r");
  const buffers = [Buffer.allocUnsafeSlow(CHUNK_BYTES), Buffer.allocUnsafeSlow(CHUNK_BYTES)] as const;
  for (let offset = 0; offset < sizeBytes; offset += CHUNK_BYTES) {
    const length = Math.min(CHUNK_BYTES, sizeBytes - offset);
    const reads = await Promise.all([
      left.read(buffers[0], 0, length, offset),
      right.read(buffers[1], 0, length, offset),
    ]);
    for (const [index, { bytesRead }] of reads.entries()) {
      if (bytesRead !== length) throw new Error(`${index === 0 ? original : copy} ends at ${offset + bytesRead}`);
    }
    const [ours, theirs] = [buffers[0].subarray(0, length), buffers[1].subarray(0, length)];
    if (ours.equals(theirs)) continue;
    const at = offset + ours.findIndex((byte, index) => byte !== theirs[index]);
    throw new Error(`${copy} differs from ${original} at ${at}`);
  }
}

/** Reads `spots` blocks spread evenly over the range, and a run of 256 KiB, from the server. */
export async function verifyServer(
  socketPath: string,
  range: Range & { sizeBytes: number },
  pattern: Pattern,
): Promise<void> {
  await using probe = await NbdProbe.connect(socketPath);
  if (probe.sizeBytes !== range.sizeBytes) {
    throw new Error(`the server's disk has ${probe.sizeBytes} bytes, the file ${range.sizeBytes}`);
  }
  await probe.verify(pattern, spots(range), SPOT_BYTES);
  await probe.verify(pattern, [range.offset], Math.min(range.length, 256 << 10));
}

const SPOTS = 128;

function* spots({ offset, length }: Range): Generator<number> {
  const blocks = Math.floor(length / SPOT_BYTES);
  const count = Math.min(SPOTS, blocks);
  for (let spot = 0; spot < count; spot++) yield offset + Math.floor((spot * blocks) / count) * SPOT_BYTES;
}
