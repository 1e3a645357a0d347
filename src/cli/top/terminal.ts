/**
 * A terminal that is drawn over and over: a screen of its own (what was there before comes back), no cursor, and keys as
 * they are pressed. `leave` puts everything back, whatever happened, and is what the operator's shell depends on.
 */
import { styleText } from "node:util";
import type { Line, Mood } from "./view.ts";

const ENTER = "\u001b[?1049h\u001b[?25l";
const LEAVE = "\u001b[?25h\u001b[?1049l";
const HOME = "\u001b[H";
const TO_END_OF_LINE = "\u001b[K";
const TO_END_OF_SCREEN = "\u001b[J";
const ROWS = 24;
const COLUMNS = 80;

const STYLES: Readonly<Record<Mood, Parameters<typeof styleText>[0] | undefined>> = {
  plain: undefined,
  head: "bold",
  good: "green",
  warning: "yellow",
  bad: "red",
  dim: "dim",
};

export interface TerminalOptions {
  readonly input: NodeJS.ReadStream;
  readonly output: NodeJS.WriteStream;
  /** What was typed, as text. */
  onKeys(keys: string): void;
  /** What is shown has to be drawn anew. */
  onResize(): void;
}

export class Terminal implements Disposable {
  readonly #options: TerminalOptions;
  readonly #onKeys = (bytes: Buffer): void => this.#options.onKeys(bytes.toString("latin1"));
  readonly #onResize = (): void => this.#options.onResize();
  readonly #onExit = (): void => this.leave();
  #entered = false;

  constructor(options: TerminalOptions) {
    this.#options = options;
  }

  get columns(): number {
    return this.#options.output.columns || COLUMNS;
  }

  get rows(): number {
    return this.#options.output.rows || ROWS;
  }

  enter(): void {
    if (this.#entered) return;
    this.#entered = true;
    const { input, output } = this.#options;
    output.write(ENTER);
    output.on("resize", this.#onResize);
    if (input.isTTY) {
      input.setRawMode(true);
      input.on("data", this.#onKeys);
    }
    // However the process ends, the shell gets its terminal back.
    process.once("exit", this.#onExit);
  }

  /** Idempotent; `enter` may follow. */
  leave(): void {
    if (!this.#entered) return;
    this.#entered = false;
    const { input, output } = this.#options;
    process.off("exit", this.#onExit);
    output.off("resize", this.#onResize);
    if (input.isTTY) {
      input.off("data", this.#onKeys);
      input.setRawMode(false);
      input.pause();
    }
    output.write(LEAVE);
  }

  draw(lines: readonly Line[]): void {
    if (!this.#entered) return;
    const drawn = lines.map((line) => `${this.styled(line)}${TO_END_OF_LINE}`);
    this.#options.output.write(`${HOME}${drawn.join("\r\n")}${TO_END_OF_SCREEN}`);
  }

  /** In colour, unless the operator wants none (NO_COLOR) or the terminal has none. */
  styled({ text, mood }: Line): string {
    const style = STYLES[mood];
    return style === undefined ? text : styleText(style, text, { stream: this.#options.output });
  }

  [Symbol.dispose](): void {
    this.leave();
  }
}
