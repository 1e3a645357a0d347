/** `switchover`, `cancel` and `reclaim`, once their flags are known. */
import type { MigrationStatus, SwitchoverReport } from "../../control/status.ts";
import { CliError } from "../cli-error.ts";
import { EXIT_NO, EXIT_OK, EXIT_USAGE } from "../exit-codes.ts";
import { printable, printableJson } from "../printable.ts";
import { formatSize } from "../progress/format.ts";
import { print, type VerbFlags, withInstance } from "../verbs/actions.ts";

const REASON_CHARACTERS_MAX = 200;

export interface SwitchoverFlags extends VerbFlags {
  readonly wait?: true | boolean;
  readonly dryRun?: true | boolean;
  readonly force?: true | boolean;
}

/** Resolves to the exit code. */
export async function switchOver(flags: SwitchoverFlags): Promise<number> {
  const { wait = false, dryRun = false, force = false } = flags;
  const report = await withInstance("switchover", flags, (client) =>
    client.call("switchover", { wait, dryRun, force }, { timeoutMs: null }),
  );
  if (flags.json) await print(`${printableJson(report)}\n`);
  else await print(dryRun ? renderPlan(report) : renderDone(report));
  return report.done || (dryRun && report.obstacle === null) ? EXIT_OK : EXIT_NO;
}

function renderDone({ pauseSeconds, syncSeconds, restBytes, guest }: SwitchoverReport): string {
  const syncs = syncSeconds === null ? "" : ` (${milliseconds(syncSeconds)} of it for syncs)`;
  const pause = pauseSeconds === null ? "" : `, writes were held for ${milliseconds(pauseSeconds)}${syncs}`;
  const rest = restBytes === 0 ? "" : `; ${formatSize(restBytes)} are still to be fetched`;
  return `the destination has the disks${guestText(guest)}${pause}${rest}\n`;
}

function guestText(guest: SwitchoverReport["guest"]): string {
  if (guest === undefined) return "";
  const still = guest.stoodStillSeconds === null ? "" : ` and stood still for ${milliseconds(guest.stoodStillSeconds)}`;
  return `, the guest ${guest.running ? "runs" : "is paused"} there${still}`;
}

function renderPlan(report: SwitchoverReport): string {
  const { obstacle, writes, restBytes, rttSeconds, flushSeconds, pauseSeconds } = report;
  const unknown = "not known on this side; ask the source";
  const rows = [
    ["switchover", obstacle === null ? "would be done" : `would not be done: ${obstacle}`],
    ["writers", writes === null ? unknown : writes === 0 ? "none" : `${writes} changes in the last moment`],
    ["to be fetched", `${formatSize(restBytes)} afterwards`],
    ["round trip", rttSeconds === null ? "not known yet" : milliseconds(rttSeconds)],
    ["flush", flushSeconds === null ? unknown : milliseconds(flushSeconds)],
    ["pause", pauseSeconds === null ? "not known" : `about ${milliseconds(pauseSeconds)}`],
  ];
  return rows.map(([name = "", value = ""]) => `${`${name}:`.padEnd(15)}${printable(value)}\n`).join("");
}

function milliseconds(seconds: number): string {
  return `${(seconds * 1000).toFixed(1)} ms`;
}

export async function cancel(flags: VerbFlags & { readonly reason?: string }): Promise<void> {
  const reason = (flags.reason ?? "an operator called it off").slice(0, REASON_CHARACTERS_MAX);
  await withInstance("cancel", flags, (client) => client.call("cancel", { reason }, { timeoutMs: null }));
  await print(flags.json ? "{}\n" : "the source has its disks\n");
}

export async function reclaim(flags: VerbFlags & { readonly destinationIsFenced?: true | boolean }): Promise<void> {
  await withInstance("reclaim", flags, async (client) => {
    const { migration } = await client.call("status", {});
    if (!flags.destinationIsFenced) throw notSure(migration);
    await client.call("reclaim", { destinationIsFenced: true }, { timeoutMs: null });
  });
  await print(flags.json ? "{}\n" : "the source has its disks\n");
}

function notSure(migration: MigrationStatus | undefined): CliError {
  return new CliError({
    exitCode: EXIT_USAGE,
    code: "not-fenced",
    what: "will not take the disks back without --destination-is-fenced",
    why: lossOf(migration),
    hint: "power the destination off or cut it off, then say so; if it only is slow, wait, or use `blockferry cancel`",
  });
}

function lossOf(migration: MigrationStatus | undefined): string {
  if (migration === undefined || migration.owner === "source") return "nothing was given away";
  const { phase, destinationWrote, destinationId } = migration;
  const who = `destination ${destinationId?.slice(0, 8) ?? "(unknown)"}`;
  if (phase === "released" || destinationWrote) return `everything that the guest wrote at ${who} would be lost`;
  return `whatever the guest may have written at ${who} would be lost; it has said nothing of writes`;
}
