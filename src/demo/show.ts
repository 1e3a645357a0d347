/** How the demo looks: a line that moves on a terminal, one line a second elsewhere, and a table at the end. */
import type { Clock } from "../env/clock.ts";

export interface Screen {
  write(text: string): void;
  readonly isTerminal: boolean;
}

const BAR_CELLS = 30;
const TERMINAL_EVERY_MS = 80;
const PIPE_EVERY_MS = 1000;

/** Shows how far something has got. */
export class ProgressLine {
  readonly #screen: Screen;
  readonly #clock: Clock;
  readonly #label: string;
  #shownMs: number;

  constructor(screen: Screen, clock: Clock, label: string) {
    this.#screen = screen;
    this.#clock = clock;
    this.#label = label;
    this.#shownMs = clock.nowMs();
  }

  /** `done` goes from 0 to 1. */
  update(done: number): void {
    const { isTerminal } = this.#screen;
    const now = this.#clock.nowMs();
    if (now - this.#shownMs < (isTerminal ? TERMINAL_EVERY_MS : PIPE_EVERY_MS)) return;
    this.#shownMs = now;
    const percent = `${(done * 100).toFixed(1)}%`.padStart(6);
    if (!isTerminal) {
      this.#screen.write(`  ${this.#label}  ${percent}\n`);
      return;
    }
    const full = Math.round(done * BAR_CELLS);
    this.#screen.write(`\r  ${this.#label}  [${"#".repeat(full)}${".".repeat(BAR_CELLS - full)}] ${percent}`);
  }

  /** Takes the moving line away again. */
  end(): void {
    if (this.#screen.isTerminal) this.#screen.write("\r\u001b[K");
  }
}

/** Columns as wide as they need to be; the last one is left ragged. */
export function renderTable(rows: readonly (readonly string[])[]): string {
  const widths = (rows[0] ?? []).map((_, column) => Math.max(...rows.map((row) => (row[column] ?? "").length)));
  return rows
    .map(
      (row) =>
        `  ${row
          .map((cell, column) => cell.padEnd(widths[column] ?? 0))
          .join("   ")
          .trimEnd()}\n`,
    )
    .join("");
}

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB"];

export function readableBytes(bytes: number): string {
  let value = bytes;
  let unit = 0;
  for (; value >= 1024 && unit < UNITS.length - 1; unit++) value /= 1024;
  return `${unit === 0 || value >= 100 ? Math.round(value) : value.toFixed(1)} ${UNITS[unit]}`;
}

export function readableSeconds(milliseconds: number): string {
  return `${(milliseconds / 1000).toFixed(2)} s`;
}
