/** One connection through the line: the socket of whoever dialled us, the one that we dialled, and what has passed. */
import type { Socket } from "node:net";
import { type CutAt, type CutHow, type Direction, fateOf } from "./faults.ts";
import type { Load } from "./lane.ts";
import { resetSocket, whenSent } from "./sockets.ts";

export interface ConnectionOwner {
  readonly cutAt: CutAt | undefined;
  arrived(from: Connection, direction: Direction, load: Load): void;
  /** The news of the connection has reached the target's side. */
  dial(connection: Connection): void;
  lost(direction: Direction, bytes: number): void;
  isLosing(direction: Direction): boolean;
  /** `planned`: at the byte of `cutAt`. */
  cutDone(planned: boolean): void;
  closed(connection: Connection): void;
}

export class Connection {
  readonly #owner: ConnectionOwner;
  /** Where each direction comes from. */
  readonly #sources: { up?: Socket; down?: Socket } = {};
  readonly #delivered = { up: 0, down: 0 };
  /** From where on a planned cut counts. */
  #counted = { up: 0, down: 0 };
  /** What came for the target before it was dialled. */
  #early: Load[] = [];
  /** A planned cut fell into what is early: the target is to get what comes before it. */
  #cutWhenDialled: CutHow | undefined;
  readonly #laneFull = { up: false, down: false };
  /** Something was lost: what follows it cannot be delivered any more. */
  readonly #broken = { up: false, down: false };
  /** Cut: what still arrives is dropped. */
  #dead = false;
  #openSockets = 0;

  constructor(owner: ConnectionOwner) {
    this.#owner = owner;
  }

  get dead(): boolean {
    return this.#dead;
  }

  /** `socket` sends in `direction`, and receives what goes the other way. */
  attach(direction: Direction, socket: Socket): void {
    this.#sources[direction] = socket;
    this.#openSockets++;
    socket.on("end", () => {
      if (this.#dead) socket.destroy();
      else this.#owner.arrived(this, direction, { kind: "end" });
    });
    socket.on("error", () => {
      if (!this.#dead) this.#owner.arrived(this, direction, { kind: "reset" });
    });
    socket.on("close", () => {
      this.#openSockets--;
      if (this.#openSockets === 0) this.#owner.closed(this);
    });
    if (direction === "down") for (const load of this.#early.splice(0)) this.#hand("up", load);
    if (this.#cutWhenDialled !== undefined) this.cut(this.#cutWhenDialled, true);
    this.#steer(direction);
    this.#steer(opposite(direction));
  }

  /** Bytes were read. True: read on. */
  read(direction: Direction, bytes: Uint8Array): boolean {
    if (this.#dead) return true;
    this.#owner.arrived(this, direction, { kind: "bytes", bytes: Uint8Array.from(bytes) });
    return this.#mayRead(direction);
  }

  setLaneFull(direction: Direction, full: boolean): void {
    if (this.#laneFull[direction] === full) return;
    this.#laneFull[direction] = full;
    this.#steer(direction);
  }

  /** A planned cut counts from here on, or from the beginning. */
  countFrom(from: "now" | "start"): void {
    this.#counted = from === "now" ? { ...this.#delivered } : { up: 0, down: 0 };
  }

  /** Hands over what has travelled in `direction`. Returns the bytes handed over. */
  deliver(direction: Direction, load: Load): number {
    const length = load.kind === "bytes" ? load.bytes.length : 0;
    if (this.#owner.isLosing(direction)) this.#broken[direction] = true;
    if (this.#dead || this.#broken[direction]) {
      this.#owner.lost(direction, length);
      return 0;
    }
    if (load.kind === "open") this.#owner.dial(this);
    else if (load.kind === "bytes") return this.#deliverBytes(direction, load.bytes);
    else this.#hand(direction, load);
    return 0;
  }

  /** Breaks the connection for both sides; what was delivered before still gets there. Idempotent. */
  cut(how: CutHow, planned = false): void {
    if (this.#dead) return;
    this.#dead = true;
    this.#owner.cutDone(planned);
    for (const socket of Object.values(this.#sources)) {
      if (how === "rst") whenSent(socket, () => resetSocket(socket));
      else {
        socket.end();
        socket.resume();
        if (socket.readableEnded) whenSent(socket, () => socket.destroy());
      }
    }
  }

  destroy(): void {
    this.#dead = true;
    for (const socket of Object.values(this.#sources)) socket.destroy();
  }

  #deliverBytes(direction: Direction, bytes: Uint8Array): number {
    const cutAt = this.#owner.cutAt?.direction === direction ? this.#owner.cutAt : undefined;
    const passed = this.#delivered[direction] - this.#counted[direction];
    const { deliverBytes, cut } = fateOf(bytes.length, passed, cutAt?.afterBytes ?? Number.POSITIVE_INFINITY);
    this.#delivered[direction] += deliverBytes;
    if (deliverBytes > 0) this.#hand(direction, { kind: "bytes", bytes: bytes.subarray(0, deliverBytes) });
    if (deliverBytes < bytes.length) this.#owner.lost(direction, bytes.length - deliverBytes);
    if (!cut || cutAt === undefined) return deliverBytes;
    if (this.#sources[opposite(direction)] !== undefined) {
      this.cut(cutAt.how, true);
    } else {
      this.#cutWhenDialled = cutAt.how;
      this.#broken[direction] = true;
    }
    return deliverBytes;
  }

  #hand(direction: Direction, load: Load): void {
    const target = this.#sources[opposite(direction)];
    if (target === undefined) {
      this.#early.push(load);
      this.#steer(direction);
    } else if (load.kind === "bytes") {
      // While a receiver takes nothing, its sender is held back; what is under way waits in Node's stream.
      target.write(load.bytes, direction === "up" ? this.#steerUp : this.#steerDown);
      if (target.writableLength > 0) this.#steer(direction);
    } else if (load.kind === "end") {
      target.end();
    } else {
      this.#dead = true;
      for (const socket of Object.values(this.#sources)) resetSocket(socket);
    }
  }

  readonly #steerUp = (): void => this.#steer("up");
  readonly #steerDown = (): void => this.#steer("down");

  #mayRead(direction: Direction): boolean {
    const target = this.#sources[opposite(direction)];
    const held = target === undefined ? this.#early.length > 0 : target.writableLength > 0;
    return this.#dead || (!held && !this.#laneFull[direction]);
  }

  #steer(direction: Direction): void {
    const source = this.#sources[direction];
    if (source === undefined || source.destroyed) return;
    if (this.#mayRead(direction)) source.resume();
    else source.pause();
  }
}

function opposite(direction: Direction): Direction {
  return direction === "up" ? "down" : "up";
}
