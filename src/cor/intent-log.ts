/**
 * `IMAGE.log`: guest writes that were acknowledged but are not durable yet. Never synced: it is for the death of this
 * process alone, after which the page cache still has it, and the guest will flush what we acknowledged.
 *
 * | header | length | |
 * | --- | --- | --- |
 * | 0 | 8 | magic "BFERRYLG" |
 * | 8 | 16 | the map's uuid |
 * | 24 | 16 | nonce, drawn when the header is written |
 * | 40 | 64 | the kernel's boot_id, zeroes after it |
 * | 508 | 4 | CRC-32 of the bytes before |
 *
 * | record, from 512 on | length | |
 * | --- | --- | --- |
 * | 0 | 8 | first cluster |
 * | 8 | 4 | count |
 * | 12 | 4 | CRC-32 of the header and the 12 bytes before |
 *
 * A record is written after the data it tells of, so replaying one is right at any time while the host is up and the data
 * was not lost; old ones tell of clusters that are durable, and do no harm. The records lie in two halves: a seal moves
 * on to the half whose records are all durable. After an error that may have lost data the header is destroyed.
 */
import { crc32 } from "node:zlib";
import type { Env } from "../env/env.ts";
import { type File, FileError } from "../env/files.ts";

const MAGIC = Buffer.from("BFERRYLG", "latin1");
const HEADER_BYTES = 512;
const BOOT_ID_BYTES_MAX = 64;
const RECORD_BYTES = 16;
const HALF_RECORDS_DEFAULT = 32_768;

export interface LogRecord {
  readonly first: number;
  readonly count: number;
}

export interface OpenLogOptions {
  readonly path: string;
  readonly uuid: Uint8Array;
  /** Tells one run of the kernel from another; `/proc/sys/kernel/random/boot_id`. */
  readonly bootId: string;
  /** Records until a commit is forced. */
  readonly halfRecords?: number;
}

/** Opens the log, making it if there is none, and reads what it knows. Bad and foreign records are left out. */
export async function openIntentLog(
  env: Pick<Env, "files" | "random" | "chaos">,
  options: OpenLogOptions,
): Promise<{ log: IntentLog; records: LogRecord[] }> {
  const { path, uuid, bootId, halfRecords = HALF_RECORDS_DEFAULT } = options;
  const file = await openOrCreate(env, path);
  try {
    const old = Buffer.alloc(HEADER_BYTES);
    const length = await file.read(0, old);
    const crc =
      length === HEADER_BYTES ? headerCrc(old, uuid, env.chaos.on("cor/log-of-any-boot") ? undefined : bootId) : -1;
    const records = crc === -1 ? [] : await readRecords(file, crc, halfRecords);
    const header = crc === -1 ? await writeHeader(env, file, { uuid, bootId }) : old;
    const tooEarly = env.chaos.on("cor/log-half-too-early");
    return { log: new IntentLog(file, header.readUInt32LE(508), { halfRecords, tooEarly }), records };
  } catch (error) {
    await file.close();
    throw error;
  }
}

async function openOrCreate(env: Pick<Env, "files">, path: string): Promise<File> {
  try {
    return await env.files.open({ path, writable: true, noFollow: true });
  } catch (error) {
    if (!(error instanceof FileError && error.code === "ENOENT")) throw error;
    return env.files.open({ path, writable: true, create: true, noFollow: true });
  }
}

/** The header's own CRC, or −1 when it is not one for this map and this run of the kernel. */
function headerCrc(header: Buffer, uuid: Uint8Array, bootId: string | undefined): number {
  if (!header.subarray(0, 8).equals(MAGIC) || !header.subarray(8, 24).equals(uuid)) return -1;
  const crc = header.readUInt32LE(508);
  if (crc32(header.subarray(0, 508)) !== crc) return -1;
  return bootId === undefined || header.subarray(40, 104).equals(bootIdBytes(bootId)) ? crc : -1;
}

async function writeHeader(
  env: Pick<Env, "random">,
  file: File,
  { uuid, bootId }: Pick<OpenLogOptions, "uuid" | "bootId">,
): Promise<Buffer> {
  const header = Buffer.alloc(HEADER_BYTES);
  MAGIC.copy(header);
  header.set(uuid, 8);
  env.random.fill(header.subarray(24, 40));
  header.set(bootIdBytes(bootId), 40);
  header.writeUInt32LE(crc32(header.subarray(0, 508)), 508);
  await file.write(0, header);
  return header;
}

function bootIdBytes(bootId: string): Buffer {
  const bytes = Buffer.alloc(BOOT_ID_BYTES_MAX);
  bytes.write(bootId, "utf8");
  return bytes;
}

async function readRecords(file: File, headerCrcValue: number, halfRecords: number): Promise<LogRecord[]> {
  const bytes = Buffer.alloc(2 * halfRecords * RECORD_BYTES);
  const length = await file.read(HEADER_BYTES, bytes);
  const records: LogRecord[] = [];
  for (let at = 0; at + RECORD_BYTES <= length; at += RECORD_BYTES) {
    const crc = crc32(bytes.subarray(at, at + 12), headerCrcValue);
    const first = bytes.readUInt32LE(at + 4) * 2 ** 32 + bytes.readUInt32LE(at);
    const count = bytes.readUInt32LE(at + 8);
    if (crc === bytes.readUInt32LE(at + 12) && count > 0) records.push({ first, count });
  }
  return records;
}

export class IntentLog {
  readonly #file: File;
  readonly #headerCrc: number;
  readonly #halfRecords: number;
  #half: 0 | 1 = 0;
  #used = 0;
  /** The other half holds nothing that is not durable. */
  #otherFree = true;
  /** Records on their way to each half. One that is late must not land on a newer one. */
  readonly #underWay: [number, number] = [0, 0];
  readonly #tooEarly: boolean;
  #destroying: Promise<void> | undefined;

  /** `tooEarly` is a mutant. */
  constructor(
    file: File,
    headerCrcValue: number,
    { halfRecords, tooEarly }: { halfRecords: number; tooEarly: boolean },
  ) {
    this.#tooEarly = tooEarly;
    this.#file = file;
    this.#headerCrc = headerCrcValue;
    this.#halfRecords = halfRecords;
  }

  /** False: there is no room, or the file system would not take it; make the write durable instead. */
  async append(first: number, count: number): Promise<boolean> {
    if (this.#destroying !== undefined || this.#used >= this.#halfRecords) return false;
    const record = Buffer.alloc(RECORD_BYTES);
    record.writeUInt32LE(first % 2 ** 32, 0);
    record.writeUInt32LE(Math.floor(first / 2 ** 32), 4);
    record.writeUInt32LE(count, 8);
    record.writeUInt32LE(crc32(record.subarray(0, 12), this.#headerCrc), 12);
    const half = this.#half;
    const offset = HEADER_BYTES + (half * this.#halfRecords + this.#used) * RECORD_BYTES;
    this.#used += 1;
    this.#underWay[half] += 1;
    try {
      if (this.#file.writeNow(offset, record) < 0) await this.#file.write(offset, record);
      return true;
    } catch (error) {
      if (error instanceof FileError) return false;
      throw error;
    } finally {
      this.#underWay[half] -= 1;
    }
  }

  /** A commit seals: later records must outlive it. */
  sealed(): void {
    const other = this.#half === 0 ? 1 : 0;
    if (!this.#tooEarly && (!this.#otherFree || this.#underWay[other] > 0)) return;
    this.#half = other;
    this.#used = 0;
    this.#otherFree = false;
  }

  /** No record tells of a cluster that is not durable. */
  get settledAll(): boolean {
    return this.#used === 0 && this.#otherFree;
  }

  /** What was sealed is durable. */
  settled(): void {
    this.#otherFree = true;
  }

  /** Data may have been lost: nothing here is to be trusted by whoever opens the overlay next. Best effort, at once. */
  destroy(): void {
    this.#destroying ??= this.#destroy();
  }

  /** Resolves when nothing here will be trusted; at once, when nothing has to be destroyed. Never rejects. */
  async destroyed(): Promise<void> {
    await this.#destroying;
  }

  async #destroy(): Promise<void> {
    const nothing = new Uint8Array(HEADER_BYTES);
    try {
      if (this.#file.writeNow(0, nothing) >= 0) return;
      await this.#file.write(0, nothing);
    } catch {
      // There may be no room for it. A shorter file needs none.
      await this.#file.truncate(0).catch(() => undefined);
    }
  }

  async close(): Promise<void> {
    await this.#destroying;
    await this.#file.close();
  }
}
