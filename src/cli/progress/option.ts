/** `--progress`: which form, and how a bare one gets past commander. Pure. */
import { InvalidArgumentError, Option } from "@commander-js/extra-typings";

export type ProgressForm =
  /** A bar on a terminal, plain lines elsewhere. */
  | { readonly kind: "auto" }
  | { readonly kind: "bar" }
  | { readonly kind: "plain" }
  | { readonly kind: "json" }
  | { readonly kind: "none" }
  /** `N/100` lines to a file descriptor that whoever started us has opened. */
  | { readonly kind: "fd"; readonly fd: number };

const WORDS = ["auto", "bar", "plain", "json", "none"] as const;

export function parseProgress(text: string): ProgressForm {
  const kind = WORDS.find((word) => word === text);
  if (kind !== undefined) return { kind };
  if (/^[0-9]{1,4}$/.test(text) && Number(text) >= 1) return { kind: "fd", fd: Number(text) };
  throw new InvalidArgumentError(`It is one of ${WORDS.join(", ")}, or the number of a file descriptor.`);
}

const BARE: ReadonlyMap<string, string> = new Map([
  ["--progress", "--progress=auto"],
  ["--repair", "--repair=all"],
]);

export function progressOption() {
  return new Option(
    "--progress <form>",
    "auto, bar, plain, json, none, or a file descriptor for N/100 lines; alone: auto",
  )
    .argParser(parseProgress)
    .default({ kind: "auto" } as ProgressForm, "auto");
}

/** A bare `--progress` would take the next word for its value: it becomes `--progress=auto`; so does `--repair`. */
export function expandBareFlags(args: readonly string[]): string[] {
  const end = args.indexOf("--");
  return args.map((word, index) => (end < 0 || index < end ? (BARE.get(word) ?? word) : word));
}
