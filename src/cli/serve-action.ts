/** `serve`, once its flags are known: plans, goes to the background if asked to, and wires the plan to this process. */
import { writeSync } from "node:fs";
import { createRealEnv } from "../os/real-env.ts";
import { takeNotifySocket } from "../os/sd-notify.ts";
import type { CommandContext } from "./command-context.ts";
import { onOutputClosed } from "./early-signals.ts";
import { EXIT_OK } from "./exit-codes.ts";
import { announceToParent, isForkedChild, spawnDetached } from "./fork.ts";
import { createLog, type Log } from "./log.ts";
import { traceLoopDelay } from "./loop-delay.ts";
import { printableJson } from "./printable.ts";
import { planServe, type ServeFlags, type ServePlan } from "./serve-plan.ts";
import { serve } from "./serve-run.ts";
import { formatUri, type ServedAs } from "./serve-uri.ts";
import { clearActivation, inheritedSockets } from "./socket-activation.ts";

export async function runServe(image: string, flags: ServeFlags, context: CommandContext): Promise<number> {
  const { env } = process;
  const inherited = inheritedSockets(env, process.pid);
  clearActivation(env);
  const plan = planServe(image, flags, { directory: process.cwd(), inherited });
  const isChild = isForkedChild(env);
  if (flags.fork && !isChild) return await leaveToChild(context.args);

  process.title = plan.exportName === "" ? "blockferry serve" : `blockferry serve ${plan.exportName}`;
  traceLoopDelay(env["BLOCKFERRY_TRACE_LOOP_DELAY"]);
  const log = createLog({
    level: flags.logLevel ?? "warn",
    format: flags.logFormat ?? (process.stderr.isTTY ? "text" : "json"),
    to: flags.logFile ?? process.stderr.fd,
  });
  return await serve(plan, {
    env: createRealEnv(),
    log,
    notifySocket: takeNotifySocket(env),
    announce: (served) => (isChild ? detach(served, plan, { log, logFile: flags.logFile }) : announce(served, plan)),
    showStatus: (line) => (isChild ? log.warn(line) : writeSync(process.stderr.fd, `${line}\n`)),
  });
}

/** In the foreground the URI is all that goes to standard output, and only when that is ours alone. */
function announce(served: ServedAs, plan: ServePlan): void {
  if (plan.run !== undefined || plan.listen.kind === "inherited") return;
  process.stdout.write(`${readyLine(served, plan)}\n`);
}

function readyLine(served: ServedAs, plan: ServePlan): string {
  const uri = formatUri(served);
  return plan.json ? printableJson({ uri, pid: process.pid }) : uri;
}

async function leaveToChild(args: readonly string[]): Promise<number> {
  const outcome = await spawnDetached(args);
  if ("exitCode" in outcome) return outcome.exitCode;
  onOutputClosed(() => process.exit(EXIT_OK));
  process.stdout.write(`${outcome.ready}\n`);
  return EXIT_OK;
}

/** The parent is about to leave, and what we inherited from it goes with it. */
function detach(served: ServedAs, plan: ServePlan, to: { log: Log; logFile: string | undefined }): void {
  if (to.logFile === undefined) to.log.silence();
  process.chdir("/");
  announceToParent(readyLine(served, plan));
}
