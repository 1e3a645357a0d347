/**
 * The feature bits in the header of an image that is in use, and when they are written.
 *
 * - Autoclear bits go before anything else is written: what they vouch for is not kept up here.
 * - The dirty bit is never set by us. One that was found goes when the check has put the reference counts right, durably.
 */
import type { ImageFile } from "../tables/image-file.ts";
import {
  isDirty,
  QCOW2_AUTOCLEAR_OFFSET,
  QCOW2_INCOMPAT_CORRUPT,
  QCOW2_INCOMPAT_DIRTY,
  QCOW2_INCOMPAT_OFFSET,
  type Qcow2Header,
} from "./header.ts";

export class Qcow2Flags {
  readonly #file: ImageFile;
  #header: Qcow2Header;
  #preparing: Promise<void> | undefined;

  /** `header`: as it is in the file. */
  constructor(file: ImageFile, header: Qcow2Header) {
    this.#file = file;
    this.#header = header;
  }

  get dirty(): boolean {
    return isDirty(this.#header);
  }

  /** Nothing has to be cleared before something else is written. */
  get prepared(): boolean {
    return this.#header.autoclearFeatures === 0n;
  }

  /** To be called before anything is written. */
  async prepare(): Promise<void> {
    if (this.prepared) return;
    this.#preparing ??= this.#clearAutoclear().finally(() => {
      this.#preparing = undefined;
    });
    await this.#preparing;
  }

  /** Resolves when nothing that `prepare` has begun is under way. */
  async settled(): Promise<void> {
    await this.#preparing?.catch(() => undefined);
  }

  /** To be called when the tables are right, durably. */
  async clearDirty(): Promise<void> {
    const known = QCOW2_INCOMPAT_DIRTY | QCOW2_INCOMPAT_CORRUPT;
    const incompatibleFeatures = this.#header.incompatibleFeatures & ~known;
    if (incompatibleFeatures === this.#header.incompatibleFeatures) return;
    await this.#write(QCOW2_INCOMPAT_OFFSET, incompatibleFeatures);
    this.#header = { ...this.#header, incompatibleFeatures };
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
