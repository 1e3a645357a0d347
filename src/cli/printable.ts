/**
 * Text that came from outside (names, paths, what a client sent) made safe for a terminal: control characters, line
 * separators and the marks that turn text around are written out instead of obeyed.
 */

/** C0 and C1 controls, DEL, line separators, directional marks, the byte-order mark. */
const UNPRINTABLE = /[\p{Cc}\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]/gu;

/** For text: `\u001b` stands for an escape character. */
export function printable(text: string): string {
  return text.replaceAll(UNPRINTABLE, (character) => `\\u${character.charCodeAt(0).toString(16).padStart(4, "0")}`);
}

/** For a line of JSON without its newline; it stays the same JSON, for there a `\uNNNN` is an escape already. */
export function printableJson(value: unknown): string {
  return printable(JSON.stringify(value));
}
