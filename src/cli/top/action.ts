/** `top`, once its flags are known. */
import { resolve } from "node:path";
import { realClock } from "../../os/clock.ts";
import { dial } from "../../os/dial.ts";
import { print } from "../verbs/actions.ts";
import { instanceSockets, notRunning } from "../verbs/connect.ts";
import { Fleet } from "./fleet.ts";
import { Terminal } from "./terminal.ts";
import { type Line, renderJson, renderPlain, renderScreen } from "./view.ts";
import type { InstanceView } from "./watched.ts";

export interface TopFlags {
  readonly control?: readonly string[];
  readonly once?: boolean;
  readonly json?: boolean;
}

const REFRESH_MS = 1000;
/** Many things may happen at once: they are looked at together. */
const SOON_MS = 50;

/** With Ctrl-C and Ctrl-D, which a raw terminal hands on as they are; so it does with Ctrl-Z. */
const QUIT_KEYS: ReadonlySet<string> = new Set(["q", "Q", "\u0003", "\u0004"]);
const SUSPEND_KEY = "\u001a";

export async function runTop(flags: TopFlags): Promise<void> {
  const stop = new AbortController();
  const end = (): void => stop.abort();
  const wake = new Wake(stop.signal);
  using fleet = new Fleet({
    named: flags.control?.map((path) => resolve(path)),
    discover: instanceSockets,
    clock: realClock,
    dial: (path) => dial({ kind: "unix", path }),
    onEvent: () => wake.now(),
  });
  const first = await fleet.refresh();
  // One that does not answer may be what somebody wants to watch; for a single look it is no instance.
  if (first.every(({ ended, status }) => ended || (flags.once && status === undefined))) throw nobody(flags, first);
  if (flags.once || flags.json || !process.stdout.isTTY) {
    await follow({ first, fleet, flags, stop, wake });
    return;
  }
  process.once("SIGINT", end).once("SIGTERM", end).once("SIGHUP", end);
  await live({ first, fleet, flags, stop, wake });
  process.off("SIGINT", end).off("SIGTERM", end).off("SIGHUP", end);
}

interface Watching {
  readonly first: InstanceView[];
  readonly fleet: Fleet;
  readonly flags: TopFlags;
  readonly stop: AbortController;
  readonly wake: Wake;
}

/** Lines or objects, one after the other. */
async function follow({ first, fleet, flags, stop, wake }: Watching): Promise<void> {
  const end = (): void => stop.abort();
  process.once("SIGINT", end).once("SIGTERM", end);
  for (let views = first; ; views = await fleet.refresh()) {
    const lines = flags.json ? [renderJson(views, realClock.wallMs())] : renderPlain(views);
    await print(lines.map((line) => `${line}\n`).join(""));
    if (flags.once || stop.signal.aborted || views.every(({ ended }) => ended)) break;
    await wake.after(REFRESH_MS, "no sooner");
    if (stop.signal.aborted) break;
  }
  process.off("SIGINT", end).off("SIGTERM", end);
}

async function live({ first, fleet, stop, wake }: Watching): Promise<void> {
  let views = first;
  let shown: Line[] = [];
  const draw = (): void => {
    shown = renderScreen(views, { columns: terminal.columns, rows: terminal.rows, wallMs: realClock.wallMs() });
    terminal.draw(shown);
  };
  const onKeys = (keys: string): void => {
    if ([...keys].some((key) => QUIT_KEYS.has(key))) stop.abort();
    else if (keys.includes(SUSPEND_KEY)) suspend();
  };
  using terminal = new Terminal({ input: process.stdin, output: process.stdout, onKeys, onResize: draw });
  const suspend = (): void => {
    terminal.leave();
    process.once("SIGCONT", () => {
      if (stop.signal.aborted) return;
      terminal.enter();
      draw();
    });
    process.kill(process.pid, "SIGTSTP");
  };
  terminal.enter();
  while (!stop.signal.aborted && !views.every(({ ended }) => ended)) {
    draw();
    await wake.after(REFRESH_MS, "sooner");
    // A refresh may have to wait for an instance that does not answer; whoever wants to leave need not.
    const next = await Promise.race([fleet.refresh(), wake.ended]);
    if (next !== undefined) views = next;
  }
  draw();
  terminal.leave();
  // What was seen last stays.
  await print(
    shown
      .slice(1)
      .map((line) => `${terminal.styled(line)}\n`)
      .join(""),
  );
}

/** The pause between two looks. */
class Wake {
  /** Resolves when the watching is over. */
  readonly ended: Promise<undefined>;
  #happened = false;
  #wake: () => void = () => {};

  constructor(signal: AbortSignal) {
    const ended = Promise.withResolvers<undefined>();
    this.ended = ended.promise;
    signal.addEventListener("abort", () => ended.resolve(undefined), { once: true });
  }

  /** Something has happened that is worth a look. */
  now(): void {
    this.#happened = true;
    this.#wake();
  }

  /** Resolves after so long; "sooner": or shortly after something has happened; or at once when it is over. */
  async after(delayMs: number, when: "sooner" | "no sooner"): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<void>();
    const late = realClock.setTimer(delayMs, resolve);
    let soon: { cancel(): void } | undefined;
    const hurry = (): void => {
      if (when === "sooner") soon ??= realClock.setTimer(SOON_MS, resolve);
    };
    this.#wake = hurry;
    if (this.#happened) hurry();
    await Promise.race([promise, this.ended]);
    late.cancel();
    soon?.cancel();
    this.#wake = () => {};
    this.#happened = false;
  }
}

function nobody({ control }: TopFlags, views: readonly InstanceView[]): Error {
  const silent = views.find(({ ended }) => !ended);
  if (control !== undefined || silent !== undefined) {
    const where = views.map((view) => view.control).join(", ");
    const hint = "check --control; the instance may have ended, or look at its log";
    return notRunning(`cannot reach the instance at ${where}`, silent?.trouble ?? "nobody listens there", hint);
  }
  const hint = "start one (`blockferry serve -C SOCKET …`), or name its socket with --control";
  return notRunning("there is no instance to watch", "no control socket in the runtime directory answers", hint);
}
