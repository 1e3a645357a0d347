/** Events, between whoever publishes them and whoever listens. */
import type { ControlEvent } from "./messages.ts";

export interface EventListener {
  /** `frame` is the event as a message; it is shared by all listeners, and nobody writes into it. Must not throw. */
  onEvent(frame: Uint8Array, event: ControlEvent): void;
}

export interface EventSource {
  subscribe(listener: EventListener): void;
  unsubscribe(listener: EventListener): void;
}
