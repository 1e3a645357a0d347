/** The process of a subcommand that serves: foreground or background, log, and how it says that it is ready. */
import { writeSync } from "node:fs";
import { createRealEnv } from "../../os/real-env.ts";
import { takeNotifySocket } from "../../os/sd-notify.ts";
import type { CommandContext } from "../command-context.ts";
import { onOutputClosed } from "../early-signals.ts";
import { EXIT_OK } from "../exit-codes.ts";
import { createLog, type Log } from "../log.ts";
import { printableJson } from "../printable.ts";
import { announceToParent, isForkedChild, spawnDetached } from "./fork.ts";
import { traceLoopDelay } from "./loop-delay.ts";
import type { ServeFlags, ServePlan, Surroundings } from "./plan.ts";
import { clearActivation, inheritedSockets } from "./socket-activation.ts";
import type { ServeSurroundings } from "./start.ts";
import { formatUri, type ServedAs } from "./uri.ts";

/** Where we were started, and the sockets that we were given. To be called once: no child of ours may take them for its own. */
export function takeSurroundings(): Surroundings {
  const inherited = inheritedSockets(process.env, process.pid);
  clearActivation(process.env);
  return { directory: process.cwd(), inherited };
}

export interface ServingProcess {
  /** "serve", "clone" */
  readonly command: string;
  readonly plan: ServePlan;
  readonly flags: Pick<ServeFlags, "fork" | "logLevel" | "logFormat" | "logFile">;
  readonly context: CommandContext;
  /** What is printed when clients can connect, if it is not the URI alone. */
  readyText?(served: ServedAs): string;
  /** Serves until the end. Resolves to the exit code. */
  run(around: ServeSurroundings): Promise<number>;
}

/** Resolves to the exit code; with `--fork`, once the child can be connected to. */
export async function runProcess(serving: ServingProcess): Promise<number> {
  const { command, plan, flags, context, run } = serving;
  const readyText = (served: ServedAs): string => serving.readyText?.(served) ?? readyLine(served, plan);
  const { env } = process;
  const isChild = isForkedChild(env);
  if (flags.fork && !isChild) return await leaveToChild(context.args);

  process.title = ["blockferry", command, plan.exportName].filter((word) => word !== "").join(" ");
  traceLoopDelay(env["BLOCKFERRY_TRACE_LOOP_DELAY"]);
  const log = createLog({
    level: flags.logLevel ?? "warn",
    format: flags.logFormat ?? (process.stderr.isTTY ? "text" : "json"),
    to: flags.logFile ?? process.stderr.fd,
  });
  return await run({
    env: createRealEnv(),
    log,
    notifySocket: takeNotifySocket(env),
    announce: (served) => {
      const text = readyText(served);
      if (isChild) detach(text, { log, logFile: flags.logFile });
      else announce(text, plan);
    },
    showStatus: (line) => (isChild ? log.warn(line) : writeSync(process.stderr.fd, `${line}\n`)),
  });
}

/** In the foreground the URI is all that goes to standard output, and only when that is ours alone. */
function announce(text: string, plan: ServePlan): void {
  if (plan.run !== undefined || plan.listen.kind === "inherited") return;
  process.stdout.write(`${text}\n`);
}

function readyLine(served: ServedAs, plan: ServePlan): string {
  const uri = formatUri(served);
  return plan.json ? printableJson({ uri, pid: process.pid }) : uri;
}

async function leaveToChild(args: readonly string[]): Promise<number> {
  const outcome = await spawnDetached(args);
  if ("exitCode" in outcome) return outcome.exitCode;
  onOutputClosed(() => process.exit(EXIT_OK));
  process.stdout.write(`${JSON.parse(outcome.ready)}\n`);
  return EXIT_OK;
}

/** The parent is about to leave, and what we inherited from it goes with it. */
function detach(text: string, to: { log: Log; logFile: string | undefined }): void {
  if (to.logFile === undefined) to.log.silence();
  process.chdir("/");
  announceToParent(JSON.stringify(text));
}
