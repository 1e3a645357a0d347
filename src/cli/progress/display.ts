/** Shows progress while something runs: once a second, in the form that was asked for. */
import { writeSync } from "node:fs";
import { printable } from "../printable.ts";
import { type Progress, progressBar, progressHundredths, progressJson, progressLine } from "./format.ts";
import type { ProgressForm } from "./option.ts";

const INTERVAL_MS = 1000;
const BAR_INTERVAL_MS = 200;
const COLUMNS = 80;

/** What of a Node stream is needed: standard error, usually. */
export interface ProgressOutput {
  readonly isTTY?: boolean;
  readonly columns?: number;
  write(text: string): unknown;
}

export interface ProgressOptions {
  readonly form: ProgressForm;
  readonly output: ProgressOutput;
  /** How things stand. Undefined: there is nothing to tell yet. */
  read(): Progress | undefined;
}

export class ProgressDisplay implements Disposable {
  readonly #options: ProgressOptions;
  readonly #form: Exclude<ProgressForm["kind"], "auto">;
  #timer: NodeJS.Timeout | undefined;
  #barShown = 0;

  /** Begins at once. */
  constructor(options: ProgressOptions) {
    const { form, output } = options;
    this.#options = options;
    this.#form = form.kind === "auto" ? (output.isTTY ? "bar" : "plain") : form.kind;
    if (this.#form === "none") return;
    this.#timer = setInterval(() => this.show(), this.#form === "bar" ? BAR_INTERVAL_MS : INTERVAL_MS);
    this.#timer.unref();
  }

  /** Now, whatever the interval says. */
  show(): void {
    const progress = this.#form === "none" ? undefined : this.#options.read();
    if (progress === undefined) return;
    if (this.#form === "bar") this.#showBar(progress);
    else if (this.#form === "fd") this.#writeToDescriptor(`${progressHundredths(progress)}\n`);
    else if (this.#form === "json") this.#options.output.write(`${printable(progressJson(progress))}\n`);
    else this.#options.output.write(`${printable(progressLine(progress))}\n`);
  }

  /** Takes the bar away, so that something else can be written; it comes back by itself. */
  clear(): void {
    if (this.#barShown > 0) this.#options.output.write(`\r${" ".repeat(this.#barShown)}\r`);
    this.#barShown = 0;
  }

  /** Shows how things stand at the end, and stops. Idempotent. */
  stop(): void {
    if (this.#timer === undefined) return;
    clearInterval(this.#timer);
    this.#timer = undefined;
    this.show();
    if (this.#barShown > 0) this.#options.output.write("\n");
    this.#barShown = 0;
  }

  [Symbol.dispose](): void {
    this.stop();
  }

  #showBar(progress: Progress): void {
    const line = printable(progressBar(progress, this.#options.output.columns ?? COLUMNS));
    // Shorter than the one before: blanks cover the rest of that.
    this.#options.output.write(`\r${line.padEnd(this.#barShown)}`);
    this.#barShown = line.length;
  }

  #writeToDescriptor(line: string): void {
    const { form } = this.#options;
    if (form.kind !== "fd") return;
    try {
      writeSync(form.fd, line);
    } catch (error) {
      // Behind with reading: the next line says more.
      if ((error as NodeJS.ErrnoException).code === "EAGAIN") return;
      // Whoever wanted to know has left, or never was there: the copy goes on.
      clearInterval(this.#timer);
      this.#timer = undefined;
    }
  }
}
