/** `source`, once its flags are known. */
import type { CommandContext } from "../command-context.ts";
import { runProcess, takeSurroundings } from "../serving/process.ts";
import { planSource, type SourceFlags } from "./plan.ts";
import { runSourceMigration } from "./run.ts";

export async function runSource(
  words: readonly string[],
  flags: SourceFlags,
  context: CommandContext,
): Promise<number> {
  const uid = process.getuid?.() ?? 0;
  const plan = planSource(words, flags, { ...takeSurroundings(), env: process.env, uid });
  let text = "";
  return await runProcess({
    ...{ command: "source", plan: plan.serve, flags, context },
    readyText: () => text,
    run: (around) =>
      runSourceMigration(plan, around, (ready) => {
        text = ready;
      }),
  });
}
