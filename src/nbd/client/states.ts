/**
 * The states of a client's session, as tables apart from the code that acts in them. `advance` is the only way from one
 * to the next; a step that the table does not have is our bug, not the peer's.
 */

/**
 * Option haggling (proto.md, "Fixed newstyle negotiation").
 * - `greeting`: the server speaks first. `haggling`: we may send an option.
 * - `awaiting-reply`: an option is out; nothing else may be sent before its final reply.
 * - `awaiting-export`: EXPORT_NAME is out; its answer has no header and cannot be an error.
 * - `securing`: STARTTLS was acknowledged, TLS shakes hands.
 * - `transmission`: the stream was handed over. `ended`: refused, aborted, lost.
 */
export type HandshakeState =
  | "greeting"
  | "haggling"
  | "awaiting-reply"
  | "awaiting-export"
  | "securing"
  | "transmission"
  | "ended";

export const HANDSHAKE_EDGES: Readonly<Record<HandshakeState, readonly HandshakeState[]>> = {
  greeting: ["haggling", "ended"],
  haggling: ["awaiting-reply", "awaiting-export", "ended"],
  "awaiting-reply": ["haggling", "securing", "transmission", "ended"],
  "awaiting-export": ["transmission", "ended"],
  securing: ["haggling", "ended"],
  transmission: [],
  ended: [],
};

/**
 * Transmission.
 * - `open`: requests are taken. `draining`: no new ones; those under way finish. `disconnecting`: DISC was sent.
 * - `closed`: ended by us, in order. `dead`: lost, or the peer broke the protocol; what was pending has failed.
 */
export type ConnectionState = "open" | "draining" | "disconnecting" | "closed" | "dead";

export const CONNECTION_EDGES: Readonly<Record<ConnectionState, readonly ConnectionState[]>> = {
  open: ["draining", "dead"],
  draining: ["disconnecting", "dead"],
  disconnecting: ["closed", "dead"],
  closed: [],
  dead: [],
};

export class StateMachine<State extends string> {
  readonly #edges: Readonly<Record<State, readonly State[]>>;
  #current: State;

  constructor(edges: Readonly<Record<State, readonly State[]>>, initial: State) {
    this.#edges = edges;
    this.#current = initial;
  }

  get current(): State {
    return this.#current;
  }

  advance(next: State): void {
    if (!this.#edges[this.#current].includes(next)) {
      throw new Error(`a session cannot go from "${this.#current}" to "${next}"`);
    }
    this.#current = next;
  }
}
