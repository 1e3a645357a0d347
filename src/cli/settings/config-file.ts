/**
 * The configuration file: TOML whose keys are long flags. Keys at the top count for every subcommand that has the flag;
 * a table named after a subcommand (`[serve]`, `[image.map]`) counts for it alone and goes first.
 *
 *     log-level = "info"
 *     [serve]
 *     tls-psk = "/etc/blockferry/keys.psk"
 */
import { readFileSync } from "node:fs";
import { parse, TomlError } from "smol-toml";
import { CliError } from "../cli-error.ts";
import { EXIT_CONFIG } from "../exit-codes.ts";
import type { FileEntry, SettingSources } from "./settings.ts";

/** Flags by subcommand: "serve" → {"port", …}, "image map" → {…}. */
export type KnownFlags = ReadonlyMap<string, ReadonlySet<string>>;

const FILE_BYTES_MAX = 1024 * 1024;

export class ConfigFile {
  readonly #path: string;
  readonly #sections = new Map<string, Map<string, FileEntry>>();

  /** Throws a configuration error for a key that no subcommand has: a misspelt key must not go unnoticed. */
  constructor(path: string, text: string, known: KnownFlags) {
    this.#path = path;
    for (const [key, value] of Object.entries(parseToml(path, text))) {
      if (isTable(value)) this.#readTable(key, value, known);
      else this.#add("", key, value, (flag) => [...known.values()].some((flags) => flags.has(flag)));
    }
  }

  /** What counts for `command` ("serve"): its own table over the common keys. */
  forCommand(command: string): SettingSources["file"] {
    return new Map([...(this.#sections.get("") ?? []), ...(this.#sections.get(command) ?? [])]);
  }

  #readTable(command: string, table: Record<string, unknown>, known: KnownFlags): void {
    for (const [key, value] of Object.entries(table)) {
      if (isTable(value)) this.#readTable(`${command} ${key}`, value, known);
      else this.#add(command, key, value, (flag) => known.get(command)?.has(flag) ?? false);
    }
  }

  #add(command: string, key: string, value: unknown, isKnown: (flag: string) => boolean): void {
    const section = command.replaceAll(" ", ".");
    const origin = `${this.#path}: ${section === "" ? "" : `${section}.`}${key}`;
    if (!isKnown(key) || key === "config") {
      const where = command === "" ? "no subcommand has" : `\`blockferry ${command}\` does not have`;
      throw configError(
        this.#path,
        `the key ${key} stands for the flag --${key}, which ${where}`,
        "correct or remove the key",
      );
    }
    if (typeof value !== "string" && typeof value !== "number" && typeof value !== "boolean") {
      throw configError(
        this.#path,
        `the key ${key} is neither a text, a number nor true or false`,
        "give it a single value",
      );
    }
    const entries = this.#sections.get(command) ?? new Map<string, FileEntry>();
    this.#sections.set(command, entries.set(key, { value, origin }));
  }
}

export function readConfigFile(path: string, known: KnownFlags): ConfigFile {
  let bytes: Buffer;
  try {
    bytes = readFileSync(path);
  } catch (error) {
    const code = (error as NodeJS.ErrnoException).code ?? String(error);
    throw configError(path, `it cannot be read (${code})`, "correct --config or BLOCKFERRY_CONFIG", error);
  }
  if (bytes.length > FILE_BYTES_MAX)
    throw configError(path, `it is larger than ${FILE_BYTES_MAX} bytes`, "is this the right file?");
  return new ConfigFile(path, bytes.toString("utf8"), known);
}

function parseToml(path: string, text: string): Record<string, unknown> {
  try {
    return parse(text);
  } catch (error) {
    if (!(error instanceof TomlError)) throw error;
    const [sentence = ""] = error.message.split("\n", 1);
    throw configError(path, `line ${error.line}: ${sentence}`, "the file must be TOML", error);
  }
}

function isTable(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value) && !(value instanceof Date);
}

function configError(path: string, why: string, hint: string, cause?: unknown): CliError {
  return new CliError(
    { exitCode: EXIT_CONFIG, code: "config", what: `cannot use the configuration file ${path}`, why, hint },
    { cause },
  );
}
