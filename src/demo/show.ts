/** How the demo looks: a line that moves on a terminal, one line a second elsewhere, and a table at the end. */
import type { Clock } from "../env/clock.ts";

export interface Screen {
  write(text: string): void;
  readonly isTerminal: boolean;
}

const BAR_CELLS = 30;
const PIPE_EVERY_MS = 1000;

/** Shows how far something has got. */
export class LiveLine {
  readonly #screen: Screen;
  readonly #clock: Clock;
  #shownMs = Number.NEGATIVE_INFINITY;

  constructor(screen: Screen, clock: Clock) {
    this.#screen = screen;
    this.#clock = clock;
  }

  /** `done` goes from 0 to 1. On a terminal it is shown at once, elsewhere once a second. */
  update(label: string, done: number, more: string): void {
    const { isTerminal } = this.#screen;
    const now = this.#clock.nowMs();
    if (!isTerminal && now - this.#shownMs < PIPE_EVERY_MS) return;
    this.#shownMs = now;
    const percent = `${(Math.min(1, done) * 100).toFixed(1)}%`.padStart(6);
    if (!isTerminal) {
      this.#screen.write(`  ${label}  ${percent}  ${more}\n`);
      return;
    }
    const full = Math.round(Math.min(1, done) * BAR_CELLS);
    this.#screen.write(
      `\r  ${label}  [${"#".repeat(full)}${".".repeat(BAR_CELLS - full)}] ${percent}  ${more}\u001b[K`,
    );
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

/** "4.2 ms", "380 ms", "2.41 s" */
export function readableTime(milliseconds: number): string {
  if (milliseconds < 100) return `${milliseconds.toFixed(1)} ms`;
  return milliseconds < 1000 ? `${Math.round(milliseconds)} ms` : `${(milliseconds / 1000).toFixed(2)} s`;
}
