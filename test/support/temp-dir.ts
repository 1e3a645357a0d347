/** Folders for one test (or one file of tests), gone afterwards. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

export class TempDir implements Disposable {
  readonly path: string;

  constructor(path: string) {
    this.path = path;
  }

  /** The path of `name` in here. */
  file(name: string): string {
    return join(this.path, name);
  }

  [Symbol.dispose](): void {
    rmSync(this.path, { recursive: true, force: true });
  }
}

/** Kept short, because a unix socket's path is limited to 107 bytes. `parent`: for a certain file system. */
export function tempDir(parent = tmpdir()): TempDir {
  return new TempDir(mkdtempSync(join(parent, "bf-")));
}
