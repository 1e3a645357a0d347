/**
 * What test disks hold: bytes that say where they belong. Each unit of `unitBytes` (a multiple of 512) is the same 512
 * bytes over and over: the unit's own offset as a little-endian u64, then `tag`, repeated. No sector is zero, data of
 * another place or of another run is told apart, and fio can write and check the very same bytes (`fioArgument`).
 */
const SECTOR_BYTES = 512;
const OFFSET_BYTES = 8;
const CHUNK_BYTES = 1 << 20;

export class Pattern {
  readonly tag: string;
  readonly unitBytes: number;
  readonly #sector: Buffer;
  readonly #scratch = Buffer.alloc(CHUNK_BYTES);

  constructor(tag: string, unitBytes = SECTOR_BYTES) {
    if (!/^[\w .:-]+$/.test(tag)) throw new Error(`a tag is plain text: ${JSON.stringify(tag)}`);
    const wholeSectors = unitBytes > 0 && unitBytes % SECTOR_BYTES === 0;
    if (!wholeSectors || unitBytes > CHUNK_BYTES / 2) throw new Error(`not a unit: ${unitBytes}`);
    this.tag = tag;
    this.unitBytes = unitBytes;
    this.#sector = Buffer.alloc(SECTOR_BYTES, this.#text(), "latin1");
    this.#sector.write(this.#text(), OFFSET_BYTES, "latin1");
    for (let at = 0; at < CHUNK_BYTES; at += SECTOR_BYTES) this.#sector.copy(this.#scratch, at);
  }

  /** For fio's `--verify_pattern`, with `--bs` equal to `unitBytes`: fio puts the offset of its own request for `%o`. */
  get fioArgument(): string {
    return `%o"${this.#text()}"`;
  }

  /** What the disk holds from `offset` on, at most 1 MiB, whole units only. Valid until the next call. */
  expected(offset: number, length: number): Buffer {
    if (offset % this.unitBytes !== 0 || length % this.unitBytes !== 0 || length > CHUNK_BYTES) {
      throw new Error(`not whole units of ${this.unitBytes}: ${length} bytes at ${offset}`);
    }
    const bytes = this.#scratch.subarray(0, length);
    for (let at = 0; at < length; at += SECTOR_BYTES) {
      const unit = offset + at - (at % this.unitBytes);
      bytes.writeUInt32LE(unit % 2 ** 32, at);
      bytes.writeUInt32LE(Math.floor(unit / 2 ** 32), at + 4);
    }
    return bytes;
  }

  /** The offset of the first byte that is not as expected, or −1. `bytes` may be of any length and begin anywhere. */
  mismatch(bytes: Buffer, offset: number): number {
    const step = CHUNK_BYTES - 2 * this.unitBytes || this.unitBytes;
    for (let done = 0; done < bytes.length; done += step) {
      const piece = bytes.subarray(done, done + step);
      const at = this.#mismatchIn(piece, offset + done);
      if (at >= 0) return offset + done + at;
    }
    return -1;
  }

  #mismatchIn(piece: Buffer, offset: number): number {
    const lead = offset % this.unitBytes;
    const whole = Math.ceil((lead + piece.length) / this.unitBytes) * this.unitBytes;
    const wanted = this.expected(offset - lead, whole).subarray(lead, lead + piece.length);
    if (piece.equals(wanted)) return -1;
    return piece.findIndex((byte, index) => byte !== wanted[index]);
  }

  #text(): string {
    const length = SECTOR_BYTES - OFFSET_BYTES;
    return `${this.tag} `.repeat(Math.ceil(length / (this.tag.length + 1))).slice(0, length);
  }
}
