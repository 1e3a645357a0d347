/** What tests of copying programs copy from and to: a sparse image that is served, and a target full of junk. */
import { makeImage } from "../../support/patterns.ts";
import { type ServeProcess, startServe } from "../../support/serve-process.ts";
import { tempDir } from "../../support/temp-dir.ts";
import { SPARSE_BYTES, SPARSE_REGIONS } from "./layout.ts";

export class CopyPlaces implements AsyncDisposable {
  readonly folder = tempDir();
  /** The image that `uri` serves, read-only: `SPARSE_REGIONS`. */
  readonly source = this.folder.file("source.img");
  /** The image that `serveTarget` serves. */
  readonly target = this.folder.file("target.img");
  #from: ServeProcess | undefined;

  async begin(): Promise<void> {
    makeImage(this.source, SPARSE_BYTES, SPARSE_REGIONS);
    this.#from = await startServe({ image: this.source, socket: this.folder.file("from.sock"), flags: ["-r"] });
  }

  get uri(): string {
    if (this.#from === undefined) throw new Error("nothing is served before begin()");
    return this.#from.uri;
  }

  /** A writable export full of junk, which a copy must replace, holes included. */
  serveTarget(): Promise<ServeProcess> {
    makeImage(this.target, SPARSE_BYTES, [{ offset: 0, length: SPARSE_BYTES, salt: 99 }]);
    return startServe({ image: this.target, socket: this.folder.file("to.sock") });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#from?.kill();
    this.folder[Symbol.dispose]();
  }
}
