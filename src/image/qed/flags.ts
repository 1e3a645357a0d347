/**
 * The feature bits in the header of an image that is in use, and when they are written.
 *
 * - NEED_CHECK is durable before the first allocating write of an image without a backing file, and cleared only when
 *   everything written under it is durable. An image with a backing file does without it: there, data is durable before
 *   the entry that points to it, so that a crash leaves lost space and nothing worse.
 * - Unknown autoclear bits go before anything else is written.
 */
import type { Chaos } from "../../env/chaos.ts";
import type { ImageFile } from "../tables/image-file.ts";
import { Preparation } from "../tables/write-guard.ts";
import {
  encodeHeader,
  isDirty,
  QED_F_BACKING_FILE,
  QED_F_BACKING_FORMAT_NO_PROBE,
  QED_F_NEED_CHECK,
  QED_FEATURES_BYTES,
  QED_FEATURES_OFFSET,
  type QedHeader,
} from "./header.ts";

export interface QedFlagsParts {
  readonly file: ImageFile;
  /** As it is in the file. */
  readonly header: QedHeader;
  /** Ordering alone keeps the tables right. */
  readonly ordered: boolean;
  readonly chaos: Chaos;
}

export class QedFlags {
  /** To be made before anything is written. */
  readonly preparation = new Preparation(
    () => this.#header.autoclearFeatures === 0n,
    () => this.#clearAutoclear(),
  );
  readonly #parts: QedFlagsParts;
  #header: QedHeader;
  /** NEED_CHECK is set and durable. */
  #marked: boolean;
  #marking: Promise<void> | undefined;

  constructor(parts: QedFlagsParts) {
    this.#parts = parts;
    this.#header = parts.header;
    // What was found may be in the page cache only; the check ends with a sync before anything is allocated.
    this.#marked = isDirty(parts.header);
  }

  get needCheck(): boolean {
    return isDirty(this.#header);
  }

  /** To be called inside the gate, before anything is allocated. */
  async mark(): Promise<void> {
    const { ordered, chaos } = this.#parts;
    if (this.#marked || ordered || chaos.on("qed/flag-not-set")) return;
    this.#marking ??= this.#setNeedCheck().finally(() => {
      this.#marking = undefined;
    });
    await this.#marking;
  }

  /** To be called while the gate is held, everything written being durable. */
  async clear(): Promise<void> {
    this.#marked = false;
    await this.#write({ ...this.#header, features: this.#header.features & ~QED_F_NEED_CHECK });
  }

  /** Afterwards the image stands alone. To be called when all that it lacks of its backing is there, durably. */
  async dropBacking(): Promise<void> {
    const { backingNameOffset, backingNameBytes, features } = this.#header;
    if ((features & QED_F_BACKING_FILE) === 0n) return;
    const { file } = this.#parts;
    const header = {
      ...this.#header,
      features: features & ~(QED_F_BACKING_FILE | QED_F_BACKING_FORMAT_NO_PROBE),
      backingNameOffset: 0,
      backingNameBytes: 0,
    };
    // All of it lies within one sector.
    await file.write(0, encodeHeader(header));
    await file.sync();
    this.#header = header;
    await file.write(backingNameOffset, Buffer.alloc(backingNameBytes));
  }

  async #setNeedCheck(): Promise<void> {
    const { file, chaos } = this.#parts;
    await this.#write({ ...this.#header, features: this.#header.features | QED_F_NEED_CHECK });
    if (!chaos.on("qed/flag-unsynced")) await file.sync();
    this.#marked = true;
  }

  async #clearAutoclear(): Promise<void> {
    const cleared = { ...this.#header, autoclearFeatures: 0n };
    await this.#write(cleared, this.#header);
    await this.#parts.file.sync();
    this.#header = { ...this.#header, autoclearFeatures: 0n };
  }

  /** The three words lie within one sector. `known` is what this object goes by until the caller says otherwise. */
  async #write(header: QedHeader, known: QedHeader = header): Promise<void> {
    const bytes = encodeHeader(header).subarray(QED_FEATURES_OFFSET, QED_FEATURES_OFFSET + QED_FEATURES_BYTES);
    await this.#parts.file.write(QED_FEATURES_OFFSET, bytes);
    this.#header = known;
  }
}
