/**
 * An export as a block device, for requests that respect its minimum block size (`aligned-device.ts` takes care of the
 * others): long requests are cut, and what a server lacks is made of what it has. proto.md, "Request types".
 */
import type { BlockCapabilities, BlockDevice, WriteOptions, ZeroOptions } from "../../block/device.ts";
import { BlockError } from "../../block/error.ts";
import { appendExtent, type Extent } from "../../block/extents.ts";
import { InFlight } from "../../util/in-flight.ts";
import { ZEROES, ZEROES_BYTES } from "../../util/zeroes.ts";
import {
  NBD_CMD_BLOCK_STATUS,
  NBD_CMD_CACHE,
  NBD_CMD_FLAG_FAST_ZERO,
  NBD_CMD_FLAG_FUA,
  NBD_CMD_FLAG_NO_HOLE,
  NBD_CMD_FLAG_REQ_ONE,
  NBD_CMD_FLUSH,
  NBD_CMD_READ,
  NBD_CMD_TRIM,
  NBD_CMD_WRITE,
  NBD_CMD_WRITE_ZEROES,
  NBD_DEFAULT_MAX_PAYLOAD,
  NBD_FLAG_BLOCK_STATUS_PAYLOAD,
  NBD_FLAG_READ_ONLY,
  NBD_FLAG_ROTATIONAL,
  NBD_FLAG_SEND_CACHE,
  NBD_FLAG_SEND_FAST_ZERO,
  NBD_FLAG_SEND_FLUSH,
  NBD_FLAG_SEND_FUA,
  NBD_FLAG_SEND_TRIM,
  NBD_FLAG_SEND_WRITE_ZEROES,
  NBD_STATE_HOLE,
  NBD_STATE_ZERO,
} from "../constants.ts";
import type { NbdConnection } from "./connection.ts";
import { ConnectionLostError, printable } from "./errors.ts";
import { BASE_ALLOCATION, type Negotiated } from "./negotiate.ts";
import { eachPiece } from "./pieces.ts";
import { type StatusExtent, StatusReply } from "./status-reply.ts";
import { viewOf, writeU64 } from "./wire.ts";

/** The longest effect that a compact header can hold, rounded down to every possible minimum block size. */
const COMPACT_EFFECT_MAX = 2 ** 32 - 65_536;

export interface StatusOptions {
  /** Ask for one extent only. */
  readonly reqOne?: boolean;
  /** Extents to keep of the answer. */
  readonly countMax?: number;
}

/** A question asked without a limit keeps no more than this. */
const STATUS_COUNT_DEFAULT = 65_536;

export class RemoteDevice implements BlockDevice {
  readonly sizeBytes: number;
  readonly capabilities: BlockCapabilities;
  readonly #connection: NbdConnection;
  readonly #negotiated: Negotiated;
  readonly #flags: number;
  readonly #payloadMax: number;
  readonly #effectMax: number;
  /** Operations of several requests. */
  readonly #steps = new InFlight();
  #flushFailure: BlockError | undefined;

  constructor(connection: NbdConnection, negotiated: Negotiated) {
    const { info, dialect, contexts } = negotiated;
    this.#connection = connection;
    this.#negotiated = negotiated;
    this.#flags = info.flags;
    this.sizeBytes = info.sizeBytes;
    const { minimum, preferred, maximum } = info.blockSizes;
    // A server may allow more; shorter requests share the connection better.
    const payloadMax = Math.min(maximum, NBD_DEFAULT_MAX_PAYLOAD);
    this.#payloadMax = payloadMax - (payloadMax % minimum);
    this.#effectMax = dialect === "extended" ? Infinity : COMPACT_EFFECT_MAX;
    this.capabilities = {
      readOnly: this.#has(NBD_FLAG_READ_ONLY),
      discard: this.#has(NBD_FLAG_SEND_TRIM),
      fastZero: this.#has(NBD_FLAG_SEND_WRITE_ZEROES) && this.#has(NBD_FLAG_SEND_FAST_ZERO),
      extents: contexts.has(BASE_ALLOCATION),
      rotational: this.#has(NBD_FLAG_ROTATIONAL),
      blockSizes: { minimum, preferred },
    };
  }

  /** Always −1: an answer takes a round trip. */
  readNow(_offset: number, _into: Uint8Array): number {
    return -1;
  }

  read(offset: number, into: Uint8Array): Promise<void> {
    const refused = this.#refusal(offset, into.length);
    if (refused !== undefined) return Promise.reject(refused);
    const command = NBD_CMD_READ;
    if (this.#fitsOneRequest(into.length)) {
      return this.#connection.request({ command, flags: 0, offset, length: into.length, into });
    }
    return this.#underWay(() =>
      eachPiece(offset, into.length, this.#payloadMax, (at, length) => {
        const piece = into.subarray(at - offset, at - offset + length);
        return this.#connection.request({ command, flags: 0, offset: at, length, into: piece });
      }),
    );
  }

  /** Always −1. */
  writeNow(_offset: number, _from: Uint8Array): number {
    return -1;
  }

  write(offset: number, from: Uint8Array, options: WriteOptions = {}): Promise<void> {
    const refused = this.#refusal(offset, from.length) ?? this.#readOnlyRefusal();
    if (refused !== undefined) return Promise.reject(refused);
    const command = NBD_CMD_WRITE;
    const flags = this.#fuaFlag(options);
    if (this.#fitsOneRequest(from.length) && !this.#mustFlush(options)) {
      return this.#connection.request({ command, flags, offset, length: from.length, payload: from });
    }
    return this.#underWay(async () => {
      await eachPiece(offset, from.length, this.#payloadMax, (at, length) => {
        const payload = from.subarray(at - offset, at - offset + length);
        return this.#connection.request({ command, flags, offset: at, length, payload });
      });
      if (this.#mustFlush(options)) await this.#flushNow();
    });
  }

  async writeZeroes(offset: number, length: number, options: ZeroOptions = {}): Promise<void> {
    this.#checkWritable(offset, length);
    if (options.fastOnly === true && !this.capabilities.fastZero) {
      throw new BlockError("not-supported", "the server cannot tell whether it would zero fast");
    }
    await this.#underWay(async () => {
      if (this.#has(NBD_FLAG_SEND_WRITE_ZEROES)) {
        let flags = this.#fuaFlag(options);
        if (options.noHole === true) flags |= NBD_CMD_FLAG_NO_HOLE;
        if (options.fastOnly === true) flags |= NBD_CMD_FLAG_FAST_ZERO;
        await this.#effect(NBD_CMD_WRITE_ZEROES, flags, offset, length);
      } else {
        await this.#writeOutZeroes(offset, length, this.#fuaFlag(options));
      }
      if (this.#mustFlush(options)) await this.#flushNow();
    });
  }

  /** Without the server's support there is nothing to do: it is a hint. */
  async discard(offset: number, length: number, options: WriteOptions = {}): Promise<void> {
    this.#checkWritable(offset, length);
    if (!this.capabilities.discard) return;
    await this.#underWay(async () => {
      await this.#effect(NBD_CMD_TRIM, this.#fuaFlag(options), offset, length);
      if (this.#mustFlush(options)) await this.#flushNow();
    });
  }

  /** Without the server's support there is nothing to do: it is a hint. */
  async cache(offset: number, length: number): Promise<void> {
    this.#check(offset, length);
    if (!this.#has(NBD_FLAG_SEND_CACHE)) return;
    await this.#underWay(() => this.#effect(NBD_CMD_CACHE, 0, offset, length));
  }

  /** A server that does not offer FLUSH has, as far as it tells, nothing to flush. */
  async flush(): Promise<void> {
    this.#check(0, 0);
    await this.#flushNow();
  }

  async #flushNow(): Promise<void> {
    if (this.#flushFailure !== undefined) {
      const { code, message } = this.#flushFailure;
      throw new BlockError(code, `an earlier flush failed: ${message}`, { cause: this.#flushFailure });
    }
    if (!this.#has(NBD_FLAG_SEND_FLUSH)) return;
    try {
      await this.#connection.request({ command: NBD_CMD_FLUSH, flags: 0, offset: 0, length: 0 });
    } catch (error) {
      // A lost link says nothing about the disk; whoever reconnects asks again.
      if (error instanceof BlockError && !(error instanceof ConnectionLostError)) this.#flushFailure = error;
      throw error;
    }
  }

  async extents(offset: number, length: number, countMax: number): Promise<Extent[]> {
    this.#check(offset, length);
    if (!(length >= 1 && countMax >= 1)) throw new BlockError("invalid", "no extents were asked for");
    if (!this.capabilities.extents) return [{ length, hole: false, zero: false }];
    const options = { reqOne: countMax === 1, countMax };
    const extents: Extent[] = [];
    for (const status of await this.blockStatus(BASE_ALLOCATION, offset, length, options)) {
      const { flags } = status;
      const hole = (flags & NBD_STATE_HOLE) !== 0;
      appendExtent(extents, { length: status.length, hole, zero: (flags & NBD_STATE_ZERO) !== 0 });
    }
    return extents;
  }

  /**
   * What a metadata context says of the range, from `offset` on: at least one extent, together at most `length` bytes.
   * `BlockError("not-supported")` when the server did not agree to the context.
   */
  async blockStatus(
    context: string,
    offset: number,
    length: number,
    options: StatusOptions = {},
  ): Promise<StatusExtent[]> {
    this.#check(offset, length);
    const wantedId = this.#negotiated.contexts.get(context);
    if (wantedId === undefined) {
      throw new BlockError("not-supported", `the server did not agree to the context "${printable(context)}"`);
    }
    if (length < 1) throw new BlockError("invalid", "no block status was asked for");
    const most = Math.min(length, this.#effectMax);
    return await this.#underWay(async () => {
      try {
        return await this.#askStatus(wantedId, offset, most, options);
      } catch (error) {
        if (!this.#mayBeTooLong(error, most)) throw error;
        return await this.#askStatus(wantedId, offset, this.#payloadMax, options);
      }
    });
  }

  async close(): Promise<void> {
    await this.#steps.close();
    await this.#connection.close();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  #has(flag: number): boolean {
    return (this.#flags & flag) !== 0;
  }

  #check(offset: number, length: number): void {
    const refused = this.#refusal(offset, length);
    if (refused !== undefined) throw refused;
  }

  #refusal(offset: number, length: number): BlockError | undefined {
    const refused = this.#connection.refusal();
    if (refused !== undefined) return refused;
    if (this.#steps.closed) return closedError();
    if (offset >= 0 && length >= 0 && offset + length <= this.sizeBytes) return undefined;
    return new BlockError(
      "out-of-range",
      `bytes ${offset}+${length} are not within the ${this.sizeBytes} of the export`,
    );
  }

  #checkWritable(offset: number, length: number): void {
    const refused = this.#refusal(offset, length) ?? this.#readOnlyRefusal();
    if (refused !== undefined) throw refused;
  }

  #readOnlyRefusal(): BlockError | undefined {
    return this.capabilities.readOnly ? new BlockError("read-only", "the server exports this read-only") : undefined;
  }

  /** Nothing is sent for no bytes: how a server answers that is not specified. */
  #fitsOneRequest(length: number): boolean {
    return length > 0 && length <= this.#payloadMax;
  }

  #fuaFlag(options: WriteOptions): number {
    return options.fua === true && this.#has(NBD_FLAG_SEND_FUA) ? NBD_CMD_FLAG_FUA : 0;
  }

  /** FUA was asked for, and the server has none. */
  #mustFlush(options: WriteOptions): boolean {
    return options.fua === true && !this.#has(NBD_FLAG_SEND_FUA);
  }

  /** For what takes more than one request: `close` waits for the last of them. */
  async #underWay<T>(work: () => Promise<T>): Promise<T> {
    if (!this.#steps.enter()) throw closedError();
    try {
      return await work();
    } finally {
      this.#steps.leave();
    }
  }

  #writeOutZeroes(offset: number, length: number, flags: number): Promise<void> {
    return eachPiece(offset, length, Math.min(ZEROES_BYTES, this.#payloadMax), (at, count) => {
      const payload = ZEROES.subarray(0, count);
      return this.#connection.request({ command: NBD_CMD_WRITE, flags, offset: at, length: count, payload });
    });
  }

  /** A command without payload, over a range of any length. */
  async #effect(command: number, flags: number, offset: number, length: number): Promise<void> {
    await this.#effectPieces({ command, flags, offset, length }, this.#effectMax, async (piece) => {
      try {
        await this.#connection.request(piece);
      } catch (error) {
        // A server may refuse an effect that is longer than its longest payload.
        if (!this.#mayBeTooLong(error, piece.length)) throw error;
        await this.#effectPieces(piece, this.#payloadMax, (shorter) => this.#connection.request(shorter));
      }
    });
  }

  /**
   * FAST_ZERO must change nothing when it fails, so the first piece alone carries the flag: once it has succeeded, the
   * others are done either way.
   */
  async #effectPieces(whole: Effect, pieceMax: number, send: (piece: Effect) => Promise<void>): Promise<void> {
    const { offset, length } = whole;
    const fast = (whole.flags & NBD_CMD_FLAG_FAST_ZERO) !== 0 && length > pieceMax;
    const first = fast ? pieceMax : 0;
    if (fast) await send({ ...whole, length: first });
    const flags = fast ? whole.flags & ~NBD_CMD_FLAG_FAST_ZERO : whole.flags;
    await eachPiece(offset + first, length - first, pieceMax, (at, count) =>
      send({ command: whole.command, flags, offset: at, length: count }),
    );
  }

  #mayBeTooLong(error: unknown, length: number): boolean {
    if (!(error instanceof BlockError) || length <= this.#payloadMax) return false;
    return error.code === "too-big" || error.code === "invalid";
  }

  async #askStatus(wantedId: number, offset: number, length: number, options: StatusOptions): Promise<StatusExtent[]> {
    const { reqOne = false, countMax = STATUS_COUNT_DEFAULT } = options;
    const all = [...this.#negotiated.contexts.values()];
    // Where the server can leave the other contexts out, it saves work on both sides.
    const filtered = all.length > 1 && this.#has(NBD_FLAG_BLOCK_STATUS_PAYLOAD) && this.#effectMax === Infinity;
    const contextIds = filtered ? [wantedId] : all;
    const status = new StatusReply({ contextIds, wantedId, length, reqOne, countMax });
    const flags = reqOne ? NBD_CMD_FLAG_REQ_ONE : 0;
    const payload = filtered ? { payload: encodeStatusFilter(length, wantedId) } : {};
    await this.#connection.request({ command: NBD_CMD_BLOCK_STATUS, flags, offset, length, status, ...payload });
    return status.extents;
  }
}

function closedError(): BlockError {
  return new BlockError("shutting-down", "the connection is closed");
}

interface Effect {
  readonly command: number;
  readonly flags: number;
  readonly offset: number;
  readonly length: number;
}

/** `0 u64 effect length   8 u32 context …` */
function encodeStatusFilter(length: number, contextId: number): Uint8Array {
  const bytes = new Uint8Array(12);
  const view = viewOf(bytes);
  writeU64(view, 0, length);
  view.setUint32(8, contextId);
  return bytes;
}
