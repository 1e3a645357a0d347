/**
 * Where the value of a flag comes from: the command line, else the environment (`BLOCKFERRY_<FLAG>`), else the
 * configuration file, else its default. Nothing here knows any particular flag.
 *
 * Some flags exclude each other. What is nearer to the user then wins: `--unix` on the command line puts a `port` of the
 * configuration file out of force. Within one source it is an error.
 */
import { usageError } from "../cli-error.ts";

/** What has to be known of a flag. */
export interface FlagShape {
  /** Long spelling without dashes: "export-name". */
  readonly flag: string;
  readonly takesValue: boolean;
}

export interface Setting {
  readonly flag: string;
  /** For a switch, whether it is on; otherwise the text, not parsed yet. */
  readonly value: string | boolean;
  readonly source: "env" | "file";
  /** Where exactly, for messages: "BLOCKFERRY_PORT", "/etc/blockferry.toml: serve.port". */
  readonly origin: string;
}

export interface SettingSources {
  /** Flags that stand on the command line. */
  readonly given: ReadonlySet<string>;
  readonly env: Readonly<Record<string, string | undefined>>;
  /** Keys are flags. The section of the subcommand has been laid over the common one. */
  readonly file: ReadonlyMap<string, FileEntry>;
}

export interface FileEntry {
  readonly value: string | number | boolean;
  readonly origin: string;
}

/** Flags that exclude each other. */
export type Conflicts = readonly (readonly [string, string])[];

/** Flags that only make sense on a command line. */
const NOT_SETTABLE: ReadonlySet<string> = new Set(["help", "version"]);

export function environmentName(flag: string): string {
  return `BLOCKFERRY_${flag.toUpperCase().replaceAll("-", "_")}`;
}

/** What environment and file add to the command line. Throws a usage error for values and combinations that cannot be. */
export function layerSettings(
  shapes: readonly FlagShape[],
  sources: SettingSources,
  conflicts: Conflicts = [],
): Setting[] {
  const settable = shapes.filter(({ flag }) => !NOT_SETTABLE.has(flag));
  const fromEnv = settable.map((shape) => fromEnvironment(shape, sources.env));
  const fromFile = settable.map((shape) => fromConfigFile(shape, sources.file));
  const inForce = new Map([...sources.given].map((flag) => [flag, `--${flag}`]));
  checkConflicts(inForce, conflicts);
  const settings: Setting[] = [];
  for (const layer of [fromEnv, fromFile]) {
    const above = new Map(inForce);
    const admitted = layer
      .filter((setting) => setting !== undefined)
      .filter((setting) => admits(above, setting, conflicts));
    for (const setting of admitted) inForce.set(setting.flag, setting.origin);
    // A switch that is off excludes nothing.
    checkConflicts(
      new Map(admitted.filter(({ value }) => value !== false).map(({ flag, origin }) => [flag, origin])),
      conflicts,
    );
    settings.push(...admitted);
  }
  return settings;
}

function admits(above: ReadonlyMap<string, string>, setting: Setting, conflicts: Conflicts): boolean {
  if (above.has(setting.flag)) return false;
  return !conflicts.some(([a, b]) => (a === setting.flag && above.has(b)) || (b === setting.flag && above.has(a)));
}

function checkConflicts(inForce: ReadonlyMap<string, string>, conflicts: Conflicts): void {
  for (const [a, b] of conflicts) {
    const first = inForce.get(a);
    const second = inForce.get(b);
    if (first === undefined || second === undefined) continue;
    throw usageError(`${first} and ${second} exclude each other`, "both were given", "leave one of them out");
  }
}

function fromEnvironment({ flag, takesValue }: FlagShape, env: SettingSources["env"]): Setting | undefined {
  const origin = environmentName(flag);
  const text = env[origin];
  if (text === undefined) return undefined;
  return { flag, value: takesValue ? text : readSwitch(text, origin), source: "env", origin };
}

function fromConfigFile({ flag, takesValue }: FlagShape, file: SettingSources["file"]): Setting | undefined {
  const found = file.get(flag);
  if (found === undefined) return undefined;
  const { origin } = found;
  const value = takesValue ? readText(found.value, origin) : readSwitch(found.value, origin);
  return { flag, value, source: "file", origin };
}

const SWITCH_WORDS: ReadonlyMap<string, boolean> = new Map([
  ["1", true],
  ["true", true],
  ["yes", true],
  ["on", true],
  ["0", false],
  ["false", false],
  ["no", false],
  ["off", false],
  ["", false],
]);

function readSwitch(value: string | number | boolean, origin: string): boolean {
  const known = SWITCH_WORDS.get(String(value).toLowerCase());
  if (known !== undefined) return known;
  throw usageError(`cannot use ${origin}`, `it says "${value}", but the flag is either on or off`, "set it to 1 or 0");
}

function readText(value: string | number | boolean, origin: string): string {
  if (typeof value !== "boolean") return String(value);
  throw usageError(
    `cannot use ${origin}`,
    `it says ${value}, but the flag takes a text or a number`,
    "put a value in quotes",
  );
}
