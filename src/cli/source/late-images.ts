/** `--late-open`: all images that the guest's own QEMU has open until its guest has moved. */
import { statSync } from "node:fs";
import { isAbsolute } from "node:path";
import { messageOf } from "../../migrate/errors.ts";
import type { QmpClient } from "../../qmp/client.ts";
import type { Log } from "../log.ts";
import { compareWithQemu } from "./late-check.ts";
import type { LateDevice } from "./late-device.ts";

export interface LateImage {
  readonly name: string;
  readonly format: string;
  /** The image, and what lies below it. */
  readonly paths: readonly [string, ...string[]];
  readonly device: LateDevice;
}

export class LateImages {
  readonly #images: readonly LateImage[];
  readonly #log: Log;

  constructor(images: readonly LateImage[], log: Log) {
    this.#images = images;
    this.#log = log;
  }

  /** Why the disks of QEMU's guest are others than were named; empty: they are not. Rejects as QMP commands do. */
  async problems(client: QmpClient): Promise<string[]> {
    const devices = await client.execute("query-block");
    const named = this.#images.map(({ device, ...image }) => ({ ...image, sizeBytes: device.sizeBytes }));
    const { problems, doubts } = compareWithQemu(named, devices, identify);
    for (const doubt of doubts) this.#log.warn(doubt);
    return [...problems];
  }

  /** From now on they can be read. Rejects with the first that cannot be opened; some may be open then. */
  async open(): Promise<void> {
    for (const { device } of this.#images) await device.open();
  }

  /** QEMU may have them again when this resolves. */
  async shut(): Promise<void> {
    for (const { name, device } of this.#images) {
      await device
        .shut()
        .catch((error: unknown) => this.#log.warn("an image was not closed well", { name, why: messageOf(error) }));
    }
  }
}

/** QEMU's relative names are relative to its own folder, and it may not see the same files as we do. */
function identify(path: string): string | undefined {
  if (!isAbsolute(path)) return undefined;
  try {
    const found = statSync(path, { bigint: true });
    // A device has as many nodes as it has names.
    return found.isBlockDevice() ? `device ${found.rdev}` : `${found.dev}:${found.ino}`;
  } catch {
    return undefined;
  }
}
