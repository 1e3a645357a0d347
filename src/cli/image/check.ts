/** `image check`, once its flags are known. */
import type { Env } from "../../env/env.ts";
import { type CheckImageOptions, chooseFormat } from "../../image/format.ts";
import type { CheckReport } from "../../image/tables/check-report.ts";
import { checkFields, renderBadEntries, renderCheck, renderRepairs } from "../../image/tables/render-check.ts";
import { createRealEnv } from "../../os/real-env.ts";
import { CliError } from "../cli-error.ts";
import { EXIT_IO, EXIT_NO, EXIT_OK, EXIT_USAGE } from "../exit-codes.ts";
import { type ImageFlags, note } from "./action.ts";
import { parseImageSpec } from "./image-spec.ts";
import { refuseIncomplete } from "./overlay-guard.ts";

export interface CheckFlags extends ImageFlags {
  readonly repair?: "leaks" | "all";
}

interface Checked {
  readonly path: string;
  readonly format: string;
  /** As it is now. */
  readonly report: CheckReport;
  /** What a repair has put right, if there was anything. */
  readonly repaired: CheckReport | undefined;
}

/** Of a chain, every image that has tables. Resolves to the exit code. */
export async function checkImages(text: string, flags: CheckFlags): Promise<number> {
  const env = createRealEnv();
  const chain = parseImageSpec(text, flags.format);
  const results: Checked[] = [];
  for (const [index, { path, format }] of chain.entries()) {
    await refuseIncomplete(env, path);
    // What lies below the image is not to be changed because of it.
    const repair = index === 0 ? flags.repair : undefined;
    const checked = await checkOne(env, { path, ...(repair !== undefined && { repair }) }, format);
    if (checked !== undefined) results.push(checked);
    else if (index === 0) throw nothingToCheck(path);
  }
  const [only = results] = results.length === 1 ? results : [];
  if (flags.json) {
    const told = "report" in only ? fieldsOf(only) : only.map(fieldsOf);
    process.stdout.write(`${JSON.stringify(told, undefined, 4)}\n`);
  } else for (const checked of results) print(checked, chain.length > 1);
  return Math.max(...results.map(({ report }) => exitCodeOf(report)));
}

/** Undefined: images of its format have no tables. */
async function checkOne(env: Env, options: CheckImageOptions, named: string | undefined): Promise<Checked | undefined> {
  const { path } = options;
  const { format, notice } = chooseFormat(path, named);
  note(notice);
  if (format.check === undefined) return undefined;
  const report = await format.check(env, options);
  const fixed = report.corruptionsFixed + (report.leaksFixed ?? 0);
  if (options.repair === undefined || fixed === 0) return { path, format: format.name, report, repaired: undefined };
  // Whether that was all can only be told by looking again.
  return { path, format: format.name, report: await format.check(env, { path }), repaired: report };
}

function print({ path, report, repaired }: Checked, named: boolean): void {
  if (named) process.stdout.write(`${path}:\n`);
  process.stderr.write(renderBadEntries(repaired ?? report));
  if (repaired !== undefined) process.stdout.write(renderRepairs(repaired));
  process.stdout.write(renderCheck(report));
}

function fieldsOf({ path, format, report, repaired }: Checked): object {
  return checkFields({ path, format, report, repaired });
}

function exitCodeOf({ corruptions, leaks, checkErrors }: CheckReport): number {
  if (checkErrors > 0) return EXIT_IO;
  return corruptions > 0 || leaks > 0 ? EXIT_NO : EXIT_OK;
}

function nothingToCheck(path: string): CliError {
  return new CliError({
    exitCode: EXIT_USAGE,
    code: "unsupported-format",
    what: `cannot check ${path}`,
    why: "a raw image has no tables that could be wrong",
    hint: "if it is no raw image, say what it is: --format qcow2, for instance",
  });
}
