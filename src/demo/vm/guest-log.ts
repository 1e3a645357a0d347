/**
 * What a guest of `scripts/guest-image` says on its serial console, as events. One log goes on over several QEMUs: a guest
 * that migrates takes even the line that it is in the middle of with it.
 */

export type GuestEvent =
  | { readonly kind: "booted" }
  | { readonly kind: "ready"; readonly disk: string; readonly files: number }
  | { readonly kind: "tick"; readonly number: number }
  | {
      readonly kind: "synced";
      readonly disk: string;
      readonly number: number;
      readonly md5: string;
      readonly bytes: number;
    }
  | { readonly kind: "removing" | "verified" | "mismatch"; readonly disk: string; readonly number: number }
  | { readonly kind: "verified-all"; readonly disk: string; readonly files: number }
  | { readonly kind: "unmounted" }
  | { readonly kind: "io-error"; readonly text: string };

type Wanted = (event: GuestEvent) => boolean;

interface Waiter {
  readonly wanted: Wanted;
  resolve(event: GuestEvent): void;
}

const SHOWN_LINES = 60;
const UNTIL_MS = 60_000;

export class GuestLog {
  readonly events: GuestEvent[] = [];
  readonly lines: string[] = [];
  readonly #waiters = new Set<Waiter>();
  readonly #onEvent: ((event: GuestEvent) => void) | undefined;
  #rest = "";

  /** `onEvent` is called at once, and must not throw. */
  constructor(onEvent?: (event: GuestEvent) => void) {
    this.#onEvent = onEvent;
  }

  /** `text` is the next piece of what the console printed. */
  push(text: string): void {
    const lines = (this.#rest + text).split("\n");
    this.#rest = lines.pop() ?? "";
    for (const line of lines) this.#onLine(line.replaceAll("\r", ""));
  }

  /**
   * Resolves to the next event that is as `wanted`, of those still to come. Rejects with the end of the log, when it does
   * not come within `timeoutMs`.
   */
  next(what: string, wanted: Wanted, timeoutMs = UNTIL_MS): Promise<GuestEvent> {
    return new Promise((resolve, reject) => {
      const waiter: Waiter = {
        wanted,
        resolve: (event) => {
          clearTimeout(timer);
          this.#waiters.delete(waiter);
          resolve(event);
        },
      };
      const timer = setTimeout(() => {
        this.#waiters.delete(waiter);
        reject(new Error(`the guest did not come to "${what}" in ${timeoutMs} ms\n${this.tail()}`));
      }, timeoutMs);
      this.#waiters.add(waiter);
    });
  }

  /** Resolves when `count` more events of a kind have come. */
  async more(kind: GuestEvent["kind"], count: number, disk?: string, timeoutMs?: number): Promise<void> {
    let left = count;
    const wanted = (event: GuestEvent): boolean => {
      if (event.kind === kind && (disk === undefined || ("disk" in event && event.disk === disk))) left -= 1;
      return left <= 0;
    };
    await this.next(`${count} more ${kind}`, wanted, timeoutMs);
  }

  of<K extends GuestEvent["kind"]>(kind: K): Extract<GuestEvent, { kind: K }>[] {
    return this.events.filter((event): event is Extract<GuestEvent, { kind: K }> => event.kind === kind);
  }

  /** Everything that must not be: what the guest saw of failing disks and wrong contents, and time that it lost. */
  complaints(): string[] {
    const wrong = this.events
      .filter(({ kind }) => kind === "io-error" || kind === "mismatch")
      .map((event) => JSON.stringify(event));
    const ticks = this.of("tick");
    const gaps = ticks.filter(({ number }, index) => index > 0 && number !== (ticks[index - 1]?.number ?? 0) + 1);
    const panics = this.lines.filter((line) => /panic|Oops|BUG:/.test(line));
    return [...wrong, ...gaps.map(({ number }) => `the counter jumped to ${number}`), ...panics];
  }

  /** MD5 sums of the files that are on a disk to stay, by number. */
  syncedOn(disk: string): Map<number, string> {
    const files = new Map<number, string>();
    for (const event of this.events) {
      if (event.kind === "synced" && event.disk === disk) files.set(event.number, event.md5);
      else if (event.kind === "removing" && event.disk === disk) files.delete(event.number);
    }
    return files;
  }

  /** The file that the guest may have been writing when it was stopped: the one after the last that it said to be synced. */
  unfinishedOn(disk: string): number | undefined {
    const numbers = this.events.flatMap((event) =>
      event.kind === "synced" && event.disk === disk ? [event.number] : [],
    );
    return numbers.length === 0 ? undefined : Math.max(...numbers) + 1;
  }

  tail(): string {
    return this.lines.slice(-SHOWN_LINES).join("\n");
  }

  #onLine(line: string): void {
    this.lines.push(line);
    const event = parseLine(line);
    if (event === undefined) return;
    this.events.push(event);
    this.#onEvent?.(event);
    for (const waiter of [...this.#waiters]) if (waiter.wanted(event)) waiter.resolve(event);
  }
}

/** The event that a line is; undefined for what the kernel prints, and for what nobody waits for. */
export function parseLine(line: string): GuestEvent | undefined {
  const [, word = "", rest = ""] = /^GUEST-([A-Z-]+) ?(.*)$/.exec(line) ?? [];
  const words = rest.split(" ");
  const [disk = "", number = "", md5 = "", bytes = ""] = words;
  switch (word) {
    case "BOOTED":
      return { kind: "booted" };
    case "READY":
      return { kind: "ready", disk, files: Number(words.at(-1)) };
    case "TICK":
      return { kind: "tick", number: Number(disk) };
    case "SYNCED":
      return { kind: "synced", disk, number: Number(number), md5, bytes: Number(bytes) };
    case "REMOVING":
      return { kind: "removing", disk, number: Number(number) };
    case "VERIFIED":
      return { kind: "verified", disk, number: Number(number) };
    case "MISMATCH":
      return { kind: "mismatch", disk, number: Number(number) };
    case "VERIFIED-ALL":
      return { kind: "verified-all", disk, files: Number(number) };
    case "UNMOUNTED":
      return { kind: "unmounted" };
    case "IO-ERROR":
      return { kind: "io-error", text: rest };
    default:
      return undefined;
  }
}
