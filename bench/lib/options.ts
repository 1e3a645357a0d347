/** The command line of the benchmarks. */
import { parseArgs } from "node:util";

export const USAGE = `usage: npm run bench -- SUITE [options]
  --samples N     samples of each contender in each case (default 5; with --quick 3)
  --quick         runs of about a second: to see that all is in order, not to compare
  --filter S      only cases whose name contains S
  --only PEER     only this contender; may be repeated, or name several, separated by commas
  --json FILE     write the results there, too ("-": to standard output, and the table to standard error)
  --size S        how much is copied, as in 512M or 2G (suite "stream"; default 1G; with --quick 256M)
  --dir D         where the test disks go (default /var/tmp); the file system matters
  --list          name the suites, or the cases of SUITE, and end
Exit codes: 0 every bar met, 1 a measurement failed, 2 a bar missed or not judged (not with --quick, --only), 64 usage.`;

export interface BenchOptions {
  readonly suite: string | undefined;
  readonly samples: number;
  readonly quick: boolean;
  readonly filter: string;
  /** Empty: all. */
  readonly only: readonly string[];
  readonly jsonFile: string | undefined;
  readonly directory: string;
  /** Undefined: the suite's own choice. */
  readonly sizeBytes: number | undefined;
  readonly list: boolean;
  readonly help: boolean;
}

/** The words cannot be understood; the message says which. */
export class UsageError extends Error {
  override readonly name = "UsageError";
}

export function parseOptions(words: readonly string[]): BenchOptions {
  const { values, positionals } = parse(words);
  const [suite, ...rest] = positionals;
  if (rest.length > 0) throw new UsageError(`one suite at a time, not "${positionals.join(" ")}"`);
  const quick = values.quick ?? false;
  return {
    suite,
    quick,
    samples: values.samples === undefined ? (quick ? 3 : 5) : wholeNumber(values.samples),
    filter: values.filter ?? "",
    only: (values.only ?? []).flatMap((names) => names.split(",")).filter((name) => name !== ""),
    jsonFile: values.json,
    directory: values.dir ?? "/var/tmp",
    sizeBytes: values.size === undefined ? undefined : size(values.size),
    list: values.list ?? false,
    help: values.help ?? false,
  };
}

function parse(words: readonly string[]) {
  try {
    return parseArgs({
      args: [...words],
      allowPositionals: true,
      options: {
        samples: { type: "string" },
        quick: { type: "boolean" },
        filter: { type: "string" },
        only: { type: "string", multiple: true },
        json: { type: "string" },
        dir: { type: "string" },
        size: { type: "string" },
        list: { type: "boolean" },
        help: { type: "boolean", short: "h" },
      },
    });
  } catch (error) {
    throw new UsageError((error as Error).message, { cause: error });
  }
}

/** In whole MiB, so that every block size divides it. */
function size(text: string): number {
  const [, digits, unit] = /^([1-9]\d{0,5})([MG])$/.exec(text) ?? [];
  if (digits === undefined) throw new UsageError(`--size takes something like 512M or 2G, not "${text}"`);
  return Number(digits) * (unit === "G" ? 2 ** 30 : 2 ** 20);
}

function wholeNumber(text: string): number {
  const value = Number(text);
  if (!Number.isSafeInteger(value) || value < 1)
    throw new UsageError(`--samples takes a number from 1 on, not "${text}"`);
  return value;
}
