/** The four kinds of messages, and how a peer's are checked. What is in `params` and `result` is for `verbs.ts`. */
import * as z from "zod";
import { ControlProtocolError, describeZodError } from "./errors.ts";

export const PROTOCOL_NAME = "blockferry-control";
/** Raised when a message or verb changes in a way that an older end would misunderstand. New keys and verbs do not. */
export const PROTOCOL_VERSION = 1;

const word = z.string().min(1).max(64);
const text = z.string().max(4096);

/** The server's first message. */
export const Hello = z.object({
  protocol: word,
  version: z.int().min(1),
  program: word,
  programVersion: word,
  pid: z.int().min(1),
  role: word,
  /** What this server can be asked. */
  verbs: z.array(word).max(64),
});
export type Hello = z.output<typeof Hello>;

const requestId = z.int().min(0).max(0xffffffff);

export const Request = z.object({
  /** Chosen by the client; comes back in the reply. */
  id: requestId,
  verb: word,
  params: z.record(z.string(), z.unknown()).default({}),
});
export type Request = z.output<typeof Request>;

export const ErrorBody = z.object({ code: word, message: text, hint: text.optional() });

export const Reply = z.union([
  z.object({ id: requestId, error: ErrorBody }),
  z.object({ id: requestId, result: z.record(z.string(), z.unknown()) }),
]);
export type Reply = z.output<typeof Reply>;

/** Something that happened. More keys may follow, depending on `event`. */
export const ControlEvent = z.looseObject({
  event: word,
  /** Counts the events of one instance from 1. A marker ("dropped") has the number of the last one that it stands for. */
  seq: z.int().min(0),
  /** ISO 8601, UTC. */
  time: word,
});
export type ControlEvent = z.output<typeof ControlEvent>;

/** `value` as `schema` wants it, or a `ControlProtocolError`. */
export function parseMessage<S extends z.ZodType>(schema: S, value: unknown, what: string): z.output<S> {
  const parsed = schema.safeParse(value);
  if (parsed.success) return parsed.data;
  throw new ControlProtocolError(`${what} is not as it should be: ${describeZodError(parsed.error)}`);
}
