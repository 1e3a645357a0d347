/** `dest`, once its flags are known. */
import type { CommandContext } from "../command-context.ts";
import { runProcess, takeSurroundings } from "../serving/process.ts";
import { type DestFlags, planDest } from "./plan.ts";
import { runDestMigration } from "./run.ts";

export async function runDest(words: readonly string[], flags: DestFlags, context: CommandContext): Promise<number> {
  const uid = process.getuid?.() ?? 0;
  const plan = planDest(words, flags, { ...takeSurroundings(), env: process.env, uid });
  let text = "";
  return await runProcess({
    ...{ command: "dest", plan: plan.serve, flags, context },
    readyText: () => text,
    run: (around) =>
      runDestMigration(plan, around, (ready) => {
        text = ready;
      }),
  });
}
