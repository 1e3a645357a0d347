/** Sessions and sources that do what a test tells them to. */
import { ConnectionLostError } from "../../../src/nbd/client/errors.ts";
import type { SourceSession } from "../../../src/stream/source-session.ts";
import { ScriptedDevice } from "../../support/scripted-device.ts";

/** A session whose link a test can cut; a read that is held is cut off with it, its buffer partly filled. */
export class ScriptedSession extends ScriptedDevice implements SourceSession {
  lost: ConnectionLostError | undefined;
  dropped: string | undefined;
  readonly #listeners = new Set<(error: Error) => void>();
  readonly #cut = Promise.withResolvers<never>();

  constructor(content: Uint8Array) {
    super({ sizeBytes: content.length, content, pageBytes: 512 });
    this.#cut.promise.catch(() => undefined);
  }

  override async read(offset: number, into: Uint8Array): Promise<void> {
    if (this.lost !== undefined) throw this.lost;
    into.fill(0xbb, 0, Math.ceil(into.length / 2));
    await Promise.race([super.read(offset, into), this.#cut.promise]);
  }

  cut(why = "cut"): void {
    if (this.lost !== undefined) return;
    this.lost = new ConnectionLostError(why, undefined);
    this.#cut.reject(this.lost);
    for (const listener of [...this.#listeners]) listener(this.lost);
  }

  onLost(listener: (error: Error) => void): () => void {
    this.#listeners.add(listener);
    return () => void this.#listeners.delete(listener);
  }

  drop(why: string): void {
    this.dropped ??= why;
    this.cut(why);
  }
}
