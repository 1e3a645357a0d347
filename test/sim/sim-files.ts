import { FileError, type Files, type OpenOptions } from "../../src/env/files.ts";
import type { SimDisk } from "./sim-disk.ts";
import { SimFile } from "./sim-file.ts";
import { SimInode } from "./sim-inode.ts";
import type { SimProcess } from "./sim-process.ts";

/** The files of a host as one process sees them. When it dies, what is under way happens in part, and nobody is told. */
export class SimFiles implements Files {
  readonly #disk: SimDisk;
  readonly #process: SimProcess;
  readonly #open = new Set<SimFile>();

  constructor(disk: SimDisk, process: SimProcess) {
    this.#disk = disk;
    this.#process = process;
    process.onDeath(() => {
      for (const file of this.#open) file.abandon();
    });
  }

  /** Files that were opened and not closed. */
  get openFiles(): number {
    return this.#open.size;
  }

  async open({ path, writable, create = false }: OpenOptions): Promise<SimFile> {
    await this.#takeTime("open");
    const known = this.#disk.find(path);
    if (create && known !== undefined) throw new FileError("EEXIST", `${path} exists`);
    if (!create && known === undefined) throw new FileError("ENOENT", `${path} does not exist`);
    const inode = known ?? new SimInode();
    if (known === undefined) this.#disk.change(new Map([[path, inode]]));
    const file = new SimFile({ disk: this.#disk, process: this.#process, inode, path, writable }, () => {
      this.#open.delete(file);
    });
    this.#open.add(file);
    return file;
  }

  async exists(path: string): Promise<boolean> {
    await this.#takeTime("exists");
    return this.#disk.find(path) !== undefined;
  }

  async rename(from: string, to: string): Promise<void> {
    await this.#takeTime("rename");
    const inode = this.#disk.find(from);
    if (inode === undefined) throw new FileError("ENOENT", `${from} does not exist`);
    if (from === to) return;
    this.#disk.change(
      new Map([
        [from, undefined],
        [to, inode],
      ]),
    );
  }

  async unlink(path: string): Promise<void> {
    await this.#takeTime("unlink");
    if (this.#disk.find(path) === undefined) throw new FileError("ENOENT", `${path} does not exist`);
    this.#disk.change(new Map([[path, undefined]]));
  }

  async syncDirectory(path: string): Promise<void> {
    const finish = this.#disk.beginDirectorySync(path);
    await this.#takeTime("sync directory");
    if (this.#disk.rng.chance(this.#disk.behaviour.syncError)) throw new FileError("EIO", `cannot sync ${path}`);
    finish();
  }

  #takeTime(label: string): Promise<void> {
    return new Promise((resolve) => {
      this.#disk.scheduler.after(this.#disk.latencyMs(), label, () => {
        if (this.#process.alive) resolve();
      });
    });
  }
}
