/** The line: listens, dials, moves what is read through one lane per direction, and obeys commands. */
import { createServer, type Server, type Socket } from "node:net";
import { performance } from "node:perf_hooks";
import { formatAddress } from "../../src/env/links.ts";
import { Connection, type ConnectionOwner } from "./connection.ts";
import { type CutAt, DIRECTIONS, type Direction } from "./faults.ts";
import { Lane, type Load, type Packet, type Shape } from "./lane.ts";
import type { Change, Command, Stats } from "./messages.ts";
import { Meter } from "./meter.ts";
import type { LineSettings } from "./options.ts";
import { adoptSocket, dialSocket, shrinkServer } from "./sockets.ts";
import { Wake } from "./wake.ts";

const READ_BYTES_MAX = 64 * 1024;
const READ_BYTES_MIN = 4 * 1024;
/** Wake-ups closer together are put together: 64 KiB at 1 Gb/s take 0.5 ms. */
const TICK_MS = 0.25;
/** For what reading and writing cost us, so much of the cost of waking up is taken off each way; */
const PASSAGE_PART = 2 / 3;
/** at most this part of the round-trip time. */
const PASSAGE_OF_RTT_MAX = 1 / 8;

export class LineServer implements ConnectionOwner {
  cutAt: CutAt | undefined;
  readonly fineTimer: boolean;
  readonly #settings: LineSettings;
  readonly #readBytes: number;
  readonly #lanes: Readonly<Record<Direction, Lane<Connection>>>;
  readonly #meters = { up: new Meter(), down: new Meter() };
  readonly #connections = new Set<Connection>();
  readonly #losing = new Set<Direction>();
  readonly #wake: Wake;
  #shape: Shape;
  #server: Server | undefined;
  /** Kept for listening again. */
  #port: number | undefined;
  #made = 0;
  #cut = 0;
  #dialFailures = 0;

  constructor(settings: LineSettings) {
    const { rttMs, bitsPerSecond, queueBytes } = settings;
    this.#settings = settings;
    this.#shape = { rttMs, bitsPerSecond, queueBytes };
    this.#readBytes = Math.min(READ_BYTES_MAX, Math.max(READ_BYTES_MIN, Math.floor(queueBytes / 4)));
    this.#lanes = { up: new Lane(this.#shape, this.#readBytes), down: new Lane(this.#shape, this.#readBytes) };
    this.#wake = new Wake(() => this.#pump());
    this.fineTimer = this.#wake.fine;
  }

  /** Resolves to the address, with the real port. */
  async listen(): Promise<string> {
    const { listen } = this.#settings;
    const server = createServer({ pauseOnConnect: true, allowHalfOpen: true }, (socket) => this.#accept(socket));
    const where =
      listen.kind === "unix" ? { path: listen.path } : { host: listen.host, port: this.#port ?? listen.port };
    await new Promise<void>((resolve, reject) => {
      server.once("error", reject);
      server.listen(where, resolve);
    });
    this.#server = server;
    shrinkServer(server);
    const bound = server.address();
    if (bound === null || typeof bound === "string") return formatAddress(listen);
    this.#port = bound.port;
    return formatAddress({ kind: "tcp", host: bound.address, port: bound.port });
  }

  /** Removes a unix socket's path, too. Idempotent. */
  stopListening(): void {
    this.#server?.close();
    this.#server = undefined;
  }

  /** Resolves to what was asked for, if anything was. */
  async obey(command: Command): Promise<Stats | undefined> {
    const nowMs = performance.now();
    if ("stats" in command) return this.#answerStats(command.reset === true);
    if ("set" in command) this.#reshape(command.set);
    else if ("cutNow" in command) for (const connection of this.#connections) connection.cut(command.cutNow);
    else if ("cutAt" in command) this.#planCut(command.cutAt);
    else if ("stall" in command) this.#stall(command.stall === "both" ? DIRECTIONS : [command.stall], nowMs);
    else if ("lose" in command) this.#losing.add(command.lose);
    else if ("resume" in command) this.#resume(nowMs);
    else if (command.refuse) this.stopListening();
    else if (this.#server === undefined) await this.listen();
    this.#pump();
    return undefined;
  }

  arrived(from: Connection, direction: Direction, load: Load): void {
    if (load.kind === "bytes") this.#meters[direction].acceptedBytes += load.bytes.length;
    // We saw it later than it came, and handing it on takes time too. Without this, 10 ms measure 10.9, with it 10.5.
    const passageMs = Math.min(this.#wake.costMs * PASSAGE_PART, this.#shape.rttMs * PASSAGE_OF_RTT_MAX);
    this.#lanes[direction].push(performance.now() - passageMs, from, load);
    this.#pump();
  }

  dial(connection: Connection): void {
    if (!this.#connections.has(connection)) return;
    const far = dialSocket(this.#settings.target, this.#readBytes, (bytes) => connection.read("down", bytes));
    const failed = (): void => {
      this.#dialFailures++;
      connection.destroy();
    };
    far.once("error", failed);
    far.once("connect", () => {
      far.off("error", failed);
      if (connection.dead || !this.#connections.has(connection)) far.destroy();
      else connection.attach("down", far);
    });
  }

  isLosing(direction: Direction): boolean {
    return this.#losing.has(direction);
  }

  lost(direction: Direction, bytes: number): void {
    this.#meters[direction].lostBytes += bytes;
  }

  cutDone(planned: boolean): void {
    this.#cut++;
    if (planned && this.cutAt?.every === false) this.cutAt = undefined;
  }

  closed(connection: Connection): void {
    this.#connections.delete(connection);
  }

  #accept(accepted: Socket): void {
    const connection = new Connection(this);
    this.#connections.add(connection);
    this.#made++;
    const near = adoptSocket(accepted, this.#readBytes, (bytes) => connection.read("up", bytes));
    connection.attach("up", near);
    // The kernel has shaken hands for us. Through a real line the target accepts when the third packet has got there.
    const open = (): void => this.arrived(connection, "up", { kind: "open" });
    if (this.#shape.rttMs === 0) open();
    else setTimeout(open, this.#shape.rttMs);
  }

  /** Moves everything as far as it is now, and sees to it that this happens again in time. */
  #pump(): void {
    const nowMs = performance.now();
    let nextMs = Number.POSITIVE_INFINITY;
    for (const direction of DIRECTIONS) {
      const lane = this.#lanes[direction];
      lane.advance(nowMs, (packet) => this.#deliver(direction, packet, nowMs));
      nextMs = Math.min(nextMs, lane.nextMs);
      for (const connection of this.#connections) connection.setLaneFull(direction, !lane.accepts);
    }
    this.#wake.at(Math.max(nextMs, nowMs + TICK_MS));
  }

  #deliver(direction: Direction, packet: Packet<Connection>, nowMs: number): void {
    const bytes = packet.to.deliver(direction, packet.load);
    const residenceMs = nowMs - packet.arrivedMs - packet.propagationMs;
    if (bytes > 0) this.#meters[direction].delivered(bytes, residenceMs, nowMs - packet.dueMs);
  }

  #reshape(change: Change): void {
    const { rttMs, bitsPerSecond, queueBytes } = change;
    this.#shape = {
      rttMs: rttMs ?? this.#shape.rttMs,
      bitsPerSecond: bitsPerSecond === undefined ? this.#shape.bitsPerSecond : (bitsPerSecond ?? Infinity),
      queueBytes: queueBytes ?? this.#shape.queueBytes,
    };
    for (const direction of DIRECTIONS) this.#lanes[direction].reshape(this.#shape);
  }

  #planCut(cutAt: CutAt | null): void {
    this.cutAt = cutAt ?? undefined;
    for (const connection of this.#connections) connection.countFrom(cutAt?.from ?? "start");
  }

  #stall(directions: readonly Direction[], nowMs: number): void {
    for (const direction of directions) this.#lanes[direction].stall(nowMs);
  }

  #resume(nowMs: number): void {
    this.#losing.clear();
    for (const direction of DIRECTIONS) this.#lanes[direction].resume(nowMs);
  }

  #answerStats(reset: boolean): Stats {
    const stats = this.#stats();
    if (!reset) return stats;
    for (const direction of DIRECTIONS) {
      this.#meters[direction].reset();
      this.#lanes[direction].resetPeak();
    }
    return stats;
  }

  #stats(): Stats {
    const cpu = process.cpuUsage();
    const { bitsPerSecond, ...shape } = this.#shape;
    return {
      up: this.#meters.up.stats(this.#lanes.up.queuedBytes, this.#lanes.up.queuedBytesPeak),
      down: this.#meters.down.stats(this.#lanes.down.queuedBytes, this.#lanes.down.queuedBytesPeak),
      connections: { open: this.#connections.size, made: this.#made, cut: this.#cut },
      dialFailures: this.#dialFailures,
      cpuMs: (cpu.user + cpu.system) / 1000,
      ...shape,
      bitsPerSecond: Number.isFinite(bitsPerSecond) ? bitsPerSecond : null,
    };
  }
}
