/**
 * The feature bits in the header of an image that is in use, and when they are written.
 *
 * - Autoclear bits go before anything else is written: what they vouch for is not kept up here.
 * - The dirty bit is never set by us. One that was found goes when the check has put the reference counts right, durably.
 */
import type { ImageFile } from "../tables/image-file.ts";
import { Preparation } from "../tables/write-guard.ts";
import {
  isDirty,
  QCOW2_AUTOCLEAR_OFFSET,
  QCOW2_BACKING_FIELDS,
  QCOW2_BACKING_FIELDS_BYTES,
  QCOW2_INCOMPAT_CORRUPT,
  QCOW2_INCOMPAT_DIRTY,
  QCOW2_INCOMPAT_OFFSET,
  type Qcow2Header,
} from "./header.ts";

export class Qcow2Flags {
  /** To be made before anything is written. */
  readonly preparation = new Preparation(
    () => this.#header.autoclearFeatures === 0n,
    () => this.#clearAutoclear(),
  );
  readonly #file: ImageFile;
  #header: Qcow2Header;

  /** `header`: as it is in the file. */
  constructor(file: ImageFile, header: Qcow2Header) {
    this.#file = file;
    this.#header = header;
  }

  get dirty(): boolean {
    return isDirty(this.#header);
  }

  /** To be called when the tables are right, durably. */
  async clearDirty(): Promise<void> {
    const known = QCOW2_INCOMPAT_DIRTY | QCOW2_INCOMPAT_CORRUPT;
    const incompatibleFeatures = this.#header.incompatibleFeatures & ~known;
    if (incompatibleFeatures === this.#header.incompatibleFeatures) return;
    await this.#write(QCOW2_INCOMPAT_OFFSET, incompatibleFeatures);
    this.#header = { ...this.#header, incompatibleFeatures };
  }

  /** Afterwards the image stands alone. To be called when all that it lacks of its backing is there, durably. */
  async dropBacking(): Promise<void> {
    const { backingNameOffset, backingNameBytes } = this.#header;
    if (backingNameOffset === 0) return;
    // Both fields lie within one sector.
    await this.#file.write(QCOW2_BACKING_FIELDS, Buffer.alloc(QCOW2_BACKING_FIELDS_BYTES));
    await this.#file.sync();
    this.#header = { ...this.#header, backingNameOffset: 0, backingNameBytes: 0 };
    await this.#file.write(backingNameOffset, Buffer.alloc(backingNameBytes));
  }

  async #clearAutoclear(): Promise<void> {
    await this.#write(QCOW2_AUTOCLEAR_OFFSET, 0n);
    this.#header = { ...this.#header, autoclearFeatures: 0n };
  }

  async #write(at: number, word: bigint): Promise<void> {
    const bytes = Buffer.alloc(8);
    bytes.writeBigUInt64BE(word);
    await this.#file.write(at, bytes);
    await this.#file.sync();
  }
}
