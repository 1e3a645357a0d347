/** `-o` of `image create`: `cluster_size=64K,compat=1.1`, in qemu-img's words. Pure. */
import { InvalidArgumentError } from "@commander-js/extra-typings";
import type { CreateImageOptions, CreateOption } from "../../image/format.ts";
import { usageError } from "../cli-error.ts";
import { parseSize } from "../settings/option-values.ts";

/** In the order in which qemu-img repeats them. */
interface Known {
  readonly option: CreateOption;
  readonly parse: (text: string) => number;
}

const KNOWN: Readonly<Record<string, Known>> = {
  cluster_size: { option: "clusterBytes", parse: parseSize },
  table_size: { option: "tableClusters", parse: parseWhole },
  compat: { option: "version", parse: parseCompat },
};

export type ParsedOptions = Pick<CreateImageOptions, "clusterBytes" | "tableClusters" | "version">;

export interface OptionsFor {
  readonly name: string;
  readonly createOptions?: readonly CreateOption[];
}

/** Throws a usage error, which names the options that there are. */
export function parseCreateOptions(texts: readonly string[], format: OptionsFor): ParsedOptions {
  const parsed: { clusterBytes?: number; tableClusters?: number; version?: 2 | 3 } = {};
  for (const word of texts.flatMap((text) => text.split(",")).filter((text) => text !== "")) {
    const [key = "", value = ""] = word.split(/=(.*)/s, 2);
    const known = Object.hasOwn(KNOWN, key) ? KNOWN[key] : undefined;
    if (known === undefined || format.createOptions?.includes(known.option) !== true) throw unknown(key, format);
    Object.assign(parsed, { [known.option]: parseValue(word, () => known.parse(value)) });
  }
  return parsed;
}

function parseValue(word: string, parse: () => number): number {
  try {
    return parse();
  } catch (error) {
    if (!(error instanceof InvalidArgumentError)) throw error;
    throw usageError(`cannot use -o ${word}`, error.message, "see `blockferry image create --help`");
  }
}

function unknown(key: string, { name, createOptions = [] }: OptionsFor): Error {
  const there = Object.entries(KNOWN).filter(([, { option }]) => createOptions.includes(option));
  const names = there.map(([word]) => word).join(", ");
  const hint = names === "" ? `${name} images have none` : `${name} images have: ${names}`;
  const why = /^(backing|encrypt)/.test(key) ? "use --backing and --backing-format" : `${name} has no option "${key}"`;
  return usageError(`cannot use -o ${key}`, why, hint);
}

function parseWhole(text: string): number {
  if (!/^[0-9]{1,3}$/.test(text)) throw new InvalidArgumentError("It must be a whole number.");
  return Number(text);
}

const COMPAT: Readonly<Record<string, number>> = { "0.10": 2, v2: 2, "1.1": 3, v3: 3 };

function parseCompat(text: string): number {
  const version = Object.hasOwn(COMPAT, text) ? COMPAT[text] : undefined;
  if (version === undefined) throw new InvalidArgumentError("It is 0.10 (also v2) or 1.1 (also v3).");
  return version;
}
