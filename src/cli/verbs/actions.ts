/** `status`, `events`, `pause`, `resume`, `set-speed` and `quit`, once their flags are known. */
import { once } from "node:events";
import type { ControlClient } from "../../control/client.ts";
import type { ControlEvent } from "../../control/messages.ts";
import { printableJson } from "../printable.ts";
import { connectControl } from "./connect.ts";
import { fromControl } from "./errors.ts";
import { renderEvent, renderRawStatus, renderStatus } from "./status-text.ts";

export interface VerbFlags {
  readonly control?: string;
  readonly disk?: string;
  readonly json?: boolean;
}

/** Runs `ask` with the instance that the flags mean; what goes wrong becomes a `CliError`. */
export async function withInstance<T>(
  verb: string,
  flags: VerbFlags,
  ask: (client: ControlClient) => Promise<T>,
): Promise<T> {
  try {
    const client = await connectControl(flags.control);
    try {
      return await ask(client);
    } finally {
      client.close();
    }
  } catch (error) {
    throw fromControl(verb, error);
  }
}

/** The parameter `disk`, where it was given. */
export function diskOf(flags: VerbFlags): { disk?: string } {
  return flags.disk === undefined ? {} : { disk: flags.disk };
}

/** Writes to standard output, and waits for a reader that is behind. */
export async function print(text: string): Promise<void> {
  if (!process.stdout.write(text)) await once(process.stdout, "drain");
}

export async function printStatus(flags: VerbFlags & { readonly raw?: boolean }): Promise<void> {
  const status = await withInstance("status", flags, (client) => client.call("status", diskOf(flags)));
  if (flags.json) await print(`${printableJson(status)}\n`);
  else await print(flags.raw ? `${renderRawStatus(status)}\n` : renderStatus(status));
}

export async function printEvents(flags: VerbFlags & { readonly follow?: boolean }): Promise<void> {
  const line = (event: ControlEvent): string => `${flags.json ? printableJson(event) : renderEvent(event)}\n`;
  await withInstance("events", flags, async (client) => {
    const follow = flags.follow ?? false;
    if (follow) client.onEvent = (event) => passOn(client, line(event));
    const { recent } = await client.call("events", { follow });
    for (const event of recent) await print(line(event));
    if (!follow) return;
    const failure = await client.closed;
    if (failure !== undefined) throw failure;
  });
}

/** An output that is behind holds up the instance's events, which then counts what we miss. */
function passOn(client: ControlClient, line: string): void {
  if (process.stdout.write(line)) return;
  client.pause();
  process.stdout.once("drain", () => client.resume());
}

export async function order(verb: "pause" | "resume", flags: VerbFlags): Promise<void> {
  await withInstance(verb, flags, (client) => client.call(verb, diskOf(flags)));
  if (flags.json) await print("{}\n");
}

export async function setSpeed(bytesPerSecond: number | null, flags: VerbFlags): Promise<void> {
  const params = { ...diskOf(flags), bytesPerSecond };
  const result = await withInstance("set-speed", flags, (client) => client.call("set-speed", params));
  if (flags.json) await print(`${printableJson(result)}\n`);
}

export async function quit(flags: VerbFlags): Promise<void> {
  await withInstance("quit", flags, async (client) => {
    await client.call("quit", {});
    // The control socket is the last thing that an instance gives up.
    await client.closed;
  });
  if (flags.json) await print("{}\n");
}
