/** Space at the end of a QED image that is durably part of the file before anything is put there. */
import type { Chaos } from "../../env/chaos.ts";
import type { ClusterRange, SpaceSource } from "../tables/cluster-pool.ts";
import { checkGrowable, type ImageFile } from "../tables/image-file.ts";

export class TailSpace implements SpaceSource {
  readonly #file: ImageFile;
  readonly #clusterBytes: number;
  readonly #chaos: Chaos;
  #end: number;

  /** Begins behind the last cluster of the file, whole or not. */
  constructor(file: ImageFile, clusterBytes: number, chaos: Chaos) {
    this.#file = file;
    this.#clusterBytes = clusterBytes;
    this.#chaos = chaos;
    this.#end = Math.ceil(file.sizeBytes / clusterBytes);
  }

  get endCluster(): number {
    return this.#end;
  }

  /** All of `wanted`, in one piece. One call at a time. */
  async reserve(wanted: number): Promise<ClusterRange> {
    checkGrowable(this.#file);
    const first = this.#end;
    await this.#file.grow((first + wanted) * this.#clusterBytes);
    if (!this.#chaos.on("qed/space-unsynced")) await this.#file.sync();
    this.#end = first + wanted;
    return { first, count: wanted };
  }

  /** What is not last is lost. */
  async free({ first, count }: ClusterRange): Promise<void> {
    if (first + count === this.#end) this.#end = first;
  }
}
