/** `wait`, once its flags are known. */
import type { ControlClient } from "../../control/client.ts";
import { ControlError } from "../../control/errors.ts";
import type { Milestone } from "../../control/verbs.ts";
import { CliError } from "../cli-error.ts";
import { EXIT_NO, EXIT_OK, EXIT_UNAVAILABLE } from "../exit-codes.ts";
import { print, type VerbFlags } from "./actions.ts";
import { connectControl } from "./connect.ts";
import { fromControl } from "./errors.ts";

export interface WaitFlags extends VerbFlags {
  readonly for: Milestone;
  /** In milliseconds. */
  readonly timeout?: number;
}

const LOOK_AGAIN_MS = 50;

/** Resolves to the exit code. */
export async function waitFor(flags: WaitFlags): Promise<number> {
  const deadlineMs = performance.now() + (flags.timeout ?? Number.POSITIVE_INFINITY);
  try {
    using client = await findInstance(flags, deadlineMs);
    const timeoutMs = flags.timeout === undefined ? null : Math.max(0, Math.ceil(deadlineMs - performance.now()));
    const { reached } = await client.call("wait", { for: flags.for, timeoutMs }, { timeoutMs: null });
    if (!reached) throw notReached(flags, "the time is up");
  } catch (error) {
    if (error instanceof ControlError && (error.code === "closing" || error.code === "closed")) {
      throw notReached(flags, "the instance has ended");
    }
    throw fromControl("wait", error);
  }
  if (flags.json) await print('{"reached":true}\n');
  return EXIT_OK;
}

/** Whoever waits for an instance to listen may have come before it. For anything else it has to be there. */
async function findInstance(flags: WaitFlags, deadlineMs: number): Promise<ControlClient> {
  for (;;) {
    try {
      return await connectControl(flags.control);
    } catch (error) {
      const absent = error instanceof CliError && error.parts.exitCode === EXIT_UNAVAILABLE;
      if (!absent || flags.for !== "listening") throw error;
      if (performance.now() + LOOK_AGAIN_MS >= deadlineMs) throw notReached(flags, "no instance has appeared");
    }
    await new Promise((resolve) => setTimeout(resolve, LOOK_AGAIN_MS));
  }
}

function notReached(flags: WaitFlags, why: string): CliError {
  const what = `the instance is not ${flags.for}`;
  return new CliError({ exitCode: EXIT_NO, code: "not-reached", what, why, hint: "see `blockferry status`" });
}
