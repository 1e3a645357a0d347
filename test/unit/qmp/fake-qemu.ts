/** A QEMU's monitor, played by hand: it keeps the states of a guest and of a migration, and a test moves them. */
import type { Clock } from "../../../src/env/clock.ts";
import { QmpClient } from "../../../src/qmp/client.ts";
import { type PairedStream, type PairOptions, streamPair } from "../../support/stream-pair.ts";
import { ManualClock } from "../nbd/client/manual-clock.ts";

export interface Command {
  readonly execute: string;
  readonly arguments?: Record<string, unknown>;
  readonly id: number;
}

/** What a command returns; or how it is refused. Undefined: the command is not answered. */
export type Answer = { readonly return: unknown } | { readonly error: { class: string; desc: string } } | undefined;

export const OK: Answer = { return: {} };

export function refused(desc: string, errorClass = "GenericError"): Answer {
  return { error: { class: errorClass, desc } };
}

const GREETING = {
  QMP: { version: { qemu: { micro: 19, minor: 2, major: 7 }, package: "Debian" }, capabilities: ["oob"] },
};

export class FakeQemu {
  readonly clock = new ManualClock();
  readonly commands: Command[] = [];
  /** The client's end. */
  readonly stream: PairedStream;
  readonly #far: PairedStream;
  readonly #scripts = new Map<string, (command: Command) => Answer>();
  #text = "";
  guest = "running";
  /** Without -S, a guest that has come in runs at once. */
  autostart = true;
  migration: Record<string, unknown> = {};
  readonly capabilities = new Map([
    ["events", false],
    ["pause-before-switchover", false],
    ["return-path", false],
    ["multifd", true],
    ["postcopy-ram", false],
    ["auto-converge", true],
  ]);
  parameters: Record<string, unknown> = { "max-bandwidth": 134_217_728, "downtime-limit": 300, "tls-creds": "" };

  constructor(options: PairOptions = {}) {
    const { client, server } = streamPair(options);
    this.stream = client;
    this.#far = server;
    server.attach({
      onBytes: (bytes) => this.#take(Buffer.from(bytes).toString("utf8")),
      onEnd: () => server.end(),
      onClose: () => undefined,
      onDrain: () => undefined,
    });
  }

  greet(greeting: object = GREETING): void {
    this.sayRaw(`${JSON.stringify(greeting)}\r\n`);
  }

  async connect(clock: Clock = this.clock): Promise<QmpClient> {
    this.greet();
    return await QmpClient.over(this.stream, clock);
  }

  sayRaw(text: string): void {
    this.#far.write(Buffer.from(text));
  }

  say(message: object): void {
    this.sayRaw(`${JSON.stringify(message)}\r\n`);
  }

  event(event: string, data: object = {}): void {
    this.say({ event, data, timestamp: { seconds: 1_700_000_000, microseconds: 5 } });
  }

  /** How `command` is answered from now on, in place of what this QEMU does by itself. */
  on(command: string, script: (command: Command) => Answer): void {
    this.#scripts.set(command, script);
  }

  /** The migration goes into another state; with `events` on, QEMU says so. */
  migrate(status: string, more: object = {}): void {
    this.migration = { ...more, status };
    if (this.capabilities.get("events")) this.event("MIGRATION", { status });
  }

  setGuest(status: string): void {
    const ran = this.guest === "running";
    this.guest = status;
    if (ran !== (status === "running")) this.event(ran ? "STOP" : "RESUME");
  }

  /** The names of the commands so far, without queries. */
  get done(): string[] {
    return this.commands.map(({ execute }) => execute).filter((name) => !name.startsWith("query-"));
  }

  argumentsOf(name: string): unknown {
    return this.commands.findLast(({ execute }) => execute === name)?.arguments;
  }

  /** The process is gone. */
  die(): void {
    this.#far.destroy();
  }

  #take(text: string): void {
    const lines = (this.#text + text).split("\n");
    this.#text = lines.pop() ?? "";
    for (const line of lines) this.#run(JSON.parse(line) as Command);
  }

  #run(command: Command): void {
    this.commands.push(command);
    const script = this.#scripts.get(command.execute);
    const answer = script === undefined ? this.#ownAnswer(command) : script(command);
    if (answer !== undefined) this.say({ ...answer, id: command.id });
  }

  #ownAnswer({ execute, arguments: args = {} }: Command): Answer {
    switch (execute) {
      case "query-status":
        return { return: { running: this.guest === "running", singlestep: false, status: this.guest } };
      case "query-migrate":
        return { return: this.migration };
      case "query-migrate-capabilities":
        return { return: [...this.capabilities].map(([capability, state]) => ({ capability, state })) };
      case "migrate-set-capabilities":
        for (const { capability, state } of args["capabilities"] as { capability: string; state: boolean }[]) {
          this.capabilities.set(capability, state);
        }
        return OK;
      case "query-migrate-parameters":
        return { return: this.parameters };
      case "migrate-set-parameters":
        Object.assign(this.parameters, args);
        return OK;
      case "cont":
        this.setGuest("running");
        return OK;
      case "stop":
        if (this.guest === "inmigrate") this.autostart = false;
        else this.setGuest("paused");
        return OK;
      case "qmp_capabilities":
      case "migrate-continue":
      case "migrate-incoming":
      case "migrate_cancel":
      case "quit":
        return OK;
      case "migrate":
        this.migrate("setup");
        return OK;
      default:
        return refused(`The command ${execute} has not been found`, "CommandNotFound");
    }
  }
}

/** Lets everything that is on its way in memory arrive. */
export async function settle(): Promise<void> {
  for (let turn = 0; turn < 5; turn++) await new Promise((resolve) => setImmediate(resolve));
}
