/** Block devices for tests: loop devices over files, under names of our own, as volume managers give names. For root only. */
import { execFileSync } from "node:child_process";
import { renameSync, symlinkSync, unlinkSync } from "node:fs";
import { makeImage, type Region } from "./patterns.ts";
import type { TempDir } from "./temp-dir.ts";

export class LoopDevice implements Disposable {
  /** The name that leads to the device: a symbolic link, as those of volumes are. */
  readonly name: string;
  /** The file that it shows. */
  readonly backing: string;
  #device: string;

  private constructor(name: string, backing: string) {
    this.name = name;
    this.backing = backing;
    this.#device = attach(backing);
    symlinkSync(this.#device, name);
  }

  /** A new one, full of a pattern unless told otherwise. `name` is in `folder`, `NAME.backing` beside it. */
  static make(folder: TempDir, name: string, sizeBytes: number, regions?: readonly Region[]): LoopDevice {
    const backing = folder.file(`${name}.backing`);
    makeImage(backing, sizeBytes, regions);
    return new LoopDevice(folder.file(name), backing);
  }

  /** In place of an image that is there, and with its contents. */
  static inPlaceOf(image: string): LoopDevice {
    renameSync(image, `${image}.backing`);
    return new LoopDevice(image, `${image}.backing`);
  }

  /** What the kernel calls it. */
  get node(): string {
    return this.#device;
  }

  /** As after the next boot: perhaps as another device of the kernel, under the same name. */
  attachAgain(): void {
    execFileSync("losetup", ["-d", this.#device]);
    this.#device = attach(this.backing);
    this.linkTo(this.#device);
  }

  /** Its name leads elsewhere from now on. */
  linkTo(device: string): void {
    unlinkSync(this.name);
    symlinkSync(device, this.name);
  }

  [Symbol.dispose](): void {
    execFileSync("losetup", ["-d", this.#device]);
  }
}

function attach(file: string): string {
  return execFileSync("losetup", ["--find", "--show", file], { encoding: "utf8" }).trim();
}
