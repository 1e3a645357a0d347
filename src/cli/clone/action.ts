/** `clone`, once its flags are known. */
import type { CommandContext } from "../command-context.ts";
import { runProcess, takeSurroundings } from "../serving/process.ts";
import { type CloneArguments, type CloneFlags, planClone } from "./plan.ts";
import { clone } from "./run.ts";

export async function runClone(words: CloneArguments, flags: CloneFlags, context: CommandContext): Promise<number> {
  const plan = planClone(words, flags, takeSurroundings());
  return await runProcess({ command: "clone", plan: plan.serve, flags, context, run: (around) => clone(plan, around) });
}
