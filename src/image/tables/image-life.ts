/**
 * The life of an image with tables, from opening to closing: the file while it is active, the tables while they are
 * loaded, and the order in which both come and go.
 */
import { BlockError } from "../../block/error.ts";
import { InFlight } from "../../util/in-flight.ts";
import { blockErrorFrom } from "../errors.ts";
import type { BackgroundCheck } from "./background-check.ts";
import { RetiredError } from "./gate.ts";
import type { ImageFile } from "./image-file.ts";

/** An image from the time its tables were first needed until they are dropped. */
export interface TableSession {
  readonly check: BackgroundCheck;
  readonly tables: { readonly cachedBytes: number };
  /** Makes durable what was written before the call. */
  sync(): Promise<void>;
  /** Drops everything, writing nothing; resolves when nobody changes header or tables any more. */
  retire(): Promise<void>;
  /** The end of a session whose image is closed cleanly, if that can be: nobody else uses it any more. */
  finish(): Promise<void>;
}

export interface ImageLifeParts<S> {
  /** The file, locked; absent when it is to be opened later. */
  readonly file: ImageFile | undefined;
  /** Opens and locks the file. */
  readonly reopen: () => Promise<ImageFile>;
  /** Reads the header anew, and the tables' tables. */
  readonly load: (file: ImageFile) => Promise<S>;
}

/** What lasts from `open` to `deactivate`. */
class Activation {
  readonly file: ImageFile;
  readonly inFlight = new InFlight();

  constructor(file: ImageFile) {
    this.file = file;
  }
}

export class ImageLife<S extends TableSession> {
  readonly #parts: ImageLifeParts<S>;
  #activation: Activation | undefined;
  #opening: Promise<void> | undefined;
  #session: S | undefined;
  #loading: Promise<S> | undefined;
  #dropping: Promise<void> = Promise.resolve();
  #closed = false;
  #closing: Promise<void> | undefined;

  constructor(parts: ImageLifeParts<S>) {
    this.#parts = parts;
    if (parts.file !== undefined) this.#activation = new Activation(parts.file);
  }

  get closed(): boolean {
    return this.#closed;
  }

  /** Whoever has the tables, if they are loaded; for use without awaiting anything. */
  get session(): S | undefined {
    return this.#activation === undefined ? undefined : this.#session;
  }

  async open(): Promise<void> {
    if (this.#closed) throw shuttingDown();
    if (this.#activation !== undefined) return;
    this.#opening ??= this.#open().finally(() => {
      this.#opening = undefined;
    });
    await this.#opening;
  }

  async invalidate(): Promise<void> {
    const session = this.#session ?? (await this.#loading?.catch(() => undefined));
    this.#session = undefined;
    this.#loading = undefined;
    // Nobody may load the tables anew while one who has the old ones still changes them.
    if (session !== undefined) this.#dropping = this.#dropping.then(() => session.retire());
    await this.#dropping;
  }

  /** Afterwards nothing is served until `open`. `flush`: what was written is made durable first. */
  async deactivate(flush: boolean): Promise<void> {
    await this.#opening;
    const activation = this.#activation;
    if (activation === undefined) return;
    this.#activation = undefined;
    await activation.inFlight.close();
    const failure = await (flush ? activation.file.sync() : Promise.resolve()).then(
      () => undefined,
      (error: unknown) => error,
    );
    await this.#end(activation);
    if (failure !== undefined) throw blockErrorFrom(failure);
  }

  close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  /** Runs `act` with the tables; anew, when they were dropped before it could allocate. */
  async run<T>(act: (session: S) => Promise<T>): Promise<T> {
    return await this.withFile(async (file) => {
      for (;;) {
        const session = this.#session ?? (await this.#load(file));
        try {
          return await act(session);
        } catch (error) {
          if (!(error instanceof RetiredError)) throw error;
        }
      }
    });
  }

  /** Runs `act` while the image is active. Failures of the host become block errors. */
  async withFile<T>(act: (file: ImageFile) => Promise<T>): Promise<T> {
    const activation = this.#activation;
    if (activation === undefined || !activation.inFlight.enter()) {
      throw this.#closed ? shuttingDown() : new BlockError("io", "the image is not active here");
    }
    try {
      return await act(activation.file);
    } catch (error) {
      throw blockErrorFrom(error);
    } finally {
      activation.inFlight.leave();
    }
  }

  async #open(): Promise<void> {
    const file = await this.#parts.reopen();
    if (this.#closed) {
      await file.file.close();
      throw shuttingDown();
    }
    this.#activation = new Activation(file);
  }

  async #close(): Promise<void> {
    this.#closed = true;
    await this.#opening?.catch(() => undefined);
    const activation = this.#activation;
    this.#activation = undefined;
    if (activation !== undefined) await this.#end(activation);
  }

  /** What is under way still succeeds; then the image is left clean, if it can be, and the lock is given back. */
  async #end({ file, inFlight }: Activation): Promise<void> {
    await inFlight.close();
    const session = this.#session;
    this.#session = undefined;
    this.#loading = undefined;
    await session?.finish();
    await this.#dropping;
    await file.file.close();
  }

  async #load(file: ImageFile): Promise<S> {
    this.#loading ??= this.#loadAfter(this.#dropping, file);
    const loading = this.#loading;
    try {
      const session = await loading;
      if (this.#loading === loading) this.#session = session;
      return session;
    } catch (error) {
      if (this.#loading === loading) this.#loading = undefined;
      throw error;
    }
  }

  async #loadAfter(dropped: Promise<void>, file: ImageFile): Promise<S> {
    await dropped;
    return await this.#parts.load(file);
  }
}

function shuttingDown(): BlockError {
  return new BlockError("shutting-down", "the image is closed");
}
