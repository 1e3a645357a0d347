/**
 * The wish that a running server end: from a signal, from a parent or a command that is gone, from a reader that left.
 * The first one counts. A second SIGINT does not wait for anything.
 */
import { EXIT_INTERRUPTED } from "../exit-codes.ts";

const PARENT_POLL_MS = 200;

export class StopRequest {
  readonly #wish = Promise.withResolvers<string>();
  #made = false;

  /** Settles with the reason for stopping. */
  get wished(): Promise<string> {
    return this.#wish.promise;
  }

  get isMade(): boolean {
    return this.#made;
  }

  make(why: string): void {
    this.#made = true;
    this.#wish.resolve(why);
  }

  /** SIGTERM and SIGINT. SIGHUP keeps its default. */
  onSignals(): void {
    process.on("SIGTERM", () => this.make("SIGTERM"));
    process.on("SIGINT", () => {
      if (this.#made) process.exit(EXIT_INTERRUPTED);
      this.make("SIGINT");
    });
  }

  /** The end of the process that started us. Looked for at intervals: the parent's PID changes when it is gone. */
  onParentExit(): void {
    const parent = process.ppid;
    const timer = setInterval(() => {
      if (process.ppid === parent) return;
      clearInterval(timer);
      this.make("the parent process has exited");
    }, PARENT_POLL_MS);
    timer.unref();
  }
}
