/**
 * What the two sides tell each other, over one message channel: msgpack maps, checked against these schemas before anything
 * looks at them. The specification is docs/PROTOCOL.md, "The migration".
 *
 * The destination speaks first, with `join`, whenever there is a new channel: that both processes have not been restarted
 * since the channel was opened is all that later messages rely on.
 */
import { Decoder, Encoder } from "@msgpack/msgpack";
import * as z from "zod";
import { MESSAGE_BYTES_MAX } from "../link/message-stream.ts";
import { MigrationProtocolError } from "./errors.ts";
import { DISKS_MAX, DiskName, ID, Term } from "./owner-record.ts";

export const MIGRATION_VERSION = 1;
/** Pages of the clean set in one message. */
export const CLEAN_PAGES_MAX = 256;
export const CLEAN_PAGE_BYTES = 128;
/** In one message: 8 GiB of a disk. */
export const HEAT_REGIONS_MAX = 8192;
export const HEAT_REGION_NUMBER_BYTES = 4;

const TEXT_LENGTH_MAX = 1024;
const text = z.string().max(TEXT_LENGTH_MAX);
const bytes = z.instanceof(Uint8Array);

/** What the destination has written down. */
const Verdict = z.discriminatedUnion("state", [
  z.strictObject({ state: z.literal("JOINED") }),
  z.strictObject({ state: z.enum(["ACTIVE", "DECLINED", "RETURNED", "COMPLETE"]), term: Term }),
]);
export type Verdict = z.output<typeof Verdict>;

export const Mode = z.enum(["hybrid", "postcopy", "precopy"]);
export type Mode = z.output<typeof Mode>;

export const FromDestination = z.discriminatedUnion("type", [
  z.strictObject({
    type: z.literal("join"),
    version: z.int(),
    disks: z.array(DiskName).min(1).max(DISKS_MAX),
    /** Absent until the source was met. */
    migrationId: ID.optional(),
    mode: Mode,
    verdict: Verdict,
    /** The guest has written, or may have. */
    written: z.boolean(),
  }),
  /** `ready`: a grant would be taken up at once. Otherwise not yet, or not any more. */
  z.strictObject({ type: z.literal("ready"), ready: z.boolean() }),
  z.strictObject({ type: z.literal("sync"), id: z.int().min(0) }),
  z.strictObject({ type: z.literal("prepared"), id: z.int().min(0) }),
  /** `syncMs`: what the record and the maps took to become durable. */
  z.strictObject({ type: z.literal("active"), term: Term, syncMs: z.number().min(0).optional() }),
  z.strictObject({ type: z.literal("written"), term: Term }),
  z.strictObject({ type: z.literal("declined"), term: Term, reason: text }),
  z.strictObject({ type: z.literal("returned"), term: Term }),
  z.strictObject({ type: z.literal("kept"), term: Term, reason: text }),
  z.strictObject({ type: z.literal("complete"), term: Term }),
  /** The operator there wants it. */
  z.strictObject({ type: z.literal("please-switch"), force: z.boolean() }),
  z.strictObject({ type: z.literal("please-cancel"), reason: text }),
]);
export type FromDestination = z.output<typeof FromDestination>;

export const FromSource = z.discriminatedUnion("type", [
  z.strictObject({
    type: z.literal("welcome"),
    version: z.int(),
    migrationId: ID,
    trackingId: ID,
    /** Nothing can be read before the grant. */
    late: z.boolean().optional(),
    /** Bytes a second that may be pulled of each disk; demand reads are not meant. */
    rate: z.int().min(1).optional(),
    disks: z
      .array(
        z.strictObject({
          name: DiskName,
          sizeBytes: z.int().min(1),
          grainBytes: z.int().min(512),
        }),
      )
      .min(1)
      .max(DISKS_MAX),
  }),
  /** The destination has no business here: it ends. */
  z.strictObject({ type: z.literal("refused"), reason: text }),
  z.strictObject({
    type: z.literal("clean"),
    disk: DiskName,
    pages: z
      .array(z.tuple([z.int().min(0), bytes]))
      .min(1)
      .max(CLEAN_PAGES_MAX),
  }),
  /** All that was clean, or not, when `sync` of this id had arrived has been told. */
  z.strictObject({ type: z.literal("synced"), id: z.int().min(0) }),
  /** Pull no more, and answer `prepared` once nothing is under way. */
  z.strictObject({ type: z.literal("prepare"), id: z.int().min(0) }),
  /** It does not come to that: pull on. */
  z.strictObject({ type: z.literal("thawed"), reason: text }),
  /** What was asked for with `please-…` cannot be done. */
  z.strictObject({ type: z.literal("cannot"), what: z.enum(["switch", "cancel"]), reason: text }),
  z.strictObject({
    type: z.literal("grant"),
    term: Term,
    trackingId: ID,
    disks: z
      .array(
        z.strictObject({
          name: DiskName,
          /** Of the clean set: its size, and the CRC-32 of its bits. */
          count: z.int().min(0),
          checksum: z.int().min(0).max(0xffffffff),
          /** What the frozen disk looks like, to know it again. */
          identity: z.string().max(256),
        }),
      )
      .min(1)
      .max(DISKS_MAX),
  }),
  /** Give it back, if you can. */
  z.strictObject({ type: z.literal("recall"), term: Term }),
  /** The source has its disks back: nothing of this migration is needed any more. */
  z.strictObject({ type: z.literal("cancelled"), reason: text }),
  z.strictObject({ type: z.literal("released"), term: Term }),
  /** Numbers of regions, u32 big-endian, hottest first. */
  z.strictObject({ type: z.literal("heat"), disk: DiskName, regionBytes: z.int().min(512), regions: bytes }),
]);
export type FromSource = z.output<typeof FromSource>;

const DEPTH_MAX = 6;
const encoder = new Encoder({ ignoreUndefined: true, maxDepth: DEPTH_MAX });
const decoder = new Decoder({
  maxStrLength: 4096,
  maxBinLength: MESSAGE_BYTES_MAX,
  maxExtLength: 0,
  maxArrayLength: CLEAN_PAGES_MAX,
  maxMapLength: 16,
});

/** The bytes are the caller's. Of a reason that is too long for the peer the beginning is sent. */
export function encodeMessage(message: FromDestination | FromSource): Uint8Array {
  const long = "reason" in message && message.reason.length > TEXT_LENGTH_MAX;
  return encoder.encode(long ? { ...message, reason: message.reason.slice(0, TEXT_LENGTH_MAX) } : message);
}

/** Throws `MigrationProtocolError` for anything that is not a message that `schema` knows. */
export function decodeMessage<S extends z.ZodType>(schema: S, body: Uint8Array): z.output<S> {
  let value: unknown;
  try {
    value = decoder.decode(body);
  } catch (error) {
    throw new MigrationProtocolError("a message cannot be decoded", { cause: error });
  }
  const parsed = schema.safeParse(value);
  if (parsed.success) return parsed.data;
  throw new MigrationProtocolError(`a message is not as it should be: ${parsed.error.issues[0]?.message ?? ""}`);
}
