/** `serve`, once its flags are known. */
import type { CommandContext } from "../command-context.ts";
import { parseImageSpec } from "../image/image-spec.ts";
import { planServe, type ServeFlags, type ServePlan } from "../serving/plan.ts";
import { runProcess, takeSurroundings } from "../serving/process.ts";
import { serve } from "./run.ts";

export async function runServe(image: string, flags: ServeFlags, context: CommandContext): Promise<number> {
  const [{ path, format }, ...below] = parseImageSpec(image, flags.format);
  const named = format === undefined ? flags : { ...flags, format };
  const plan: ServePlan = { ...planServe(path, named, takeSurroundings()), below };
  return await runProcess({ command: "serve", plan, flags, context, run: (around) => serve(plan, around) });
}
