/** The line as a process: prints a ready line, then obeys standard input (`--control`) until it ends. */
import { createInterface } from "node:readline";
import { exitQuickly } from "../../src/os/quick-exit.ts";
import { LineServer } from "./line.ts";
import { type Answer, parseCommand } from "./messages.ts";
import { LineUsageError, parseCommandLine, USAGE } from "./options.ts";

const EX_USAGE = 64;

function say(answer: Answer): void {
  process.stdout.write(`${JSON.stringify(answer)}\n`);
}

async function main(): Promise<void> {
  const settings = parseCommandLine(process.argv.slice(2));
  const line = new LineServer(settings);
  const ready = await line.listen();
  say({ ready, fineTimer: line.fineTimer });
  if (!settings.control) return;
  for await (const text of createInterface({ input: process.stdin })) {
    try {
      const stats = await line.obey(parseCommand(text));
      say(stats === undefined ? { ok: true } : { stats });
    } catch (error) {
      say({ error: (error as Error).message });
    }
  }
  // Whoever held the other end has closed it or is dead.
  line.stopListening();
  process.exit(0);
}

exitQuickly();
main().catch((error: unknown) => {
  const usage = error instanceof LineUsageError ? `\n${USAGE}` : "";
  process.stderr.write(`line: ${(error as Error).message}${usage}\n`);
  process.exit(error instanceof LineUsageError ? EX_USAGE : 1);
});
