/** `serve`, once its flags are known. */
import type { CommandContext } from "../command-context.ts";
import { planServe, type ServeFlags } from "../serving/plan.ts";
import { runProcess, takeSurroundings } from "../serving/process.ts";
import { serve } from "./run.ts";

export async function runServe(image: string, flags: ServeFlags, context: CommandContext): Promise<number> {
  const plan = planServe(image, flags, takeSurroundings());
  return await runProcess({ command: "serve", plan, flags, context, run: (around) => serve(plan, around) });
}
