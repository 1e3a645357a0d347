/** What happens in an instance, for whoever wants to know: the newest events are kept, and subscribers are told at once. */
import type { Clock } from "../env/clock.ts";
import { encodeMessage } from "./frame.ts";
import { EVENT_BYTES_MAX, RECENT_EVENT_BYTES_MAX, RECENT_EVENTS_MAX } from "./limits.ts";
import type { ControlEvent } from "./messages.ts";
import type { VerbRegistry } from "./registry.ts";
import type { EventListener, EventSource } from "./subscription.ts";
import { VERBS } from "./verbs.ts";

export type EventFields = Readonly<Record<string, string | number | boolean | null>>;

interface Kept {
  readonly event: ControlEvent;
  readonly bytes: number;
}

export class EventHub implements EventSource {
  readonly #clock: Clock;
  readonly #listeners = new Set<EventListener>();
  #recent: Kept[] = [];
  #recentBytes = 0;
  #seq = 0;

  constructor(clock: Clock) {
    this.#clock = clock;
  }

  get recent(): ControlEvent[] {
    return this.#recent.map(({ event }) => event);
  }

  /** Tells that `event` ("stalled", "hydrated", …) has happened. Texts in `fields` are cut where they are too long. */
  publish(event: string, fields: EventFields = {}): void {
    const made: ControlEvent = { ...cutFields(fields), event, seq: ++this.#seq, time: isoTime(this.#clock) };
    const frame = encodeMessage(made);
    if (frame.length > EVENT_BYTES_MAX) throw new Error(`the event ${event} is too large`);
    this.#keep({ event: made, bytes: frame.length });
    for (const listener of [...this.#listeners]) listener.onEvent(frame, made);
  }

  subscribe(listener: EventListener): void {
    this.#listeners.add(listener);
  }

  unsubscribe(listener: EventListener): void {
    this.#listeners.delete(listener);
  }

  /** Adds the verb `events`. */
  registerVerbs(registry: VerbRegistry): void {
    registry.register("events", VERBS.events, ({ follow }, call) => {
      if (follow) call.subscribe(this);
      return { recent: this.recent };
    });
  }

  #keep(kept: Kept): void {
    this.#recent.push(kept);
    this.#recentBytes += kept.bytes;
    while (this.#recent.length > RECENT_EVENTS_MAX || this.#recentBytes > RECENT_EVENT_BYTES_MAX) {
      this.#recentBytes -= this.#recent.shift()?.bytes ?? 0;
    }
  }
}

export function isoTime(clock: Clock): string {
  return new Date(clock.wallMs()).toISOString();
}

const FIELD_TEXT_MAX = 400;
const FIELDS_MAX = 8;

function cutFields(fields: EventFields): EventFields {
  const entries = Object.entries(fields);
  if (entries.length > FIELDS_MAX) throw new Error(`an event has ${entries.length} fields, at most ${FIELDS_MAX}`);
  return Object.fromEntries(
    entries.map(([key, value]) => [key, typeof value === "string" ? value.slice(0, FIELD_TEXT_MAX) : value]),
  );
}
