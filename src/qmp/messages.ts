/** What QEMU says, as far as we look at it; all else is passed over. Source: QEMU's qapi/*.json, "QMP protocol specification". */
import * as z from "zod";
import { QmpProtocolError } from "./errors.ts";

const word = z.string().max(256);
const text = z.string().max(16 * 1024);
const count = z.number().min(0);

export const Greeting = z.object({
  QMP: z.object({
    version: z.object({
      qemu: z.object({ major: z.int(), minor: z.int(), micro: z.int() }),
      package: text.optional(),
    }),
    capabilities: z.array(z.unknown()).max(64),
  }),
});
export type Greeting = z.output<typeof Greeting>;

const ErrorBody = z.object({ class: word, desc: text });

/** A reply without an id answers what QEMU could not read at all. */
export const Reply = z.union([
  z.object({ id: z.int().optional(), error: ErrorBody }),
  z.object({ id: z.int(), return: z.unknown() }),
]);
export type Reply = z.output<typeof Reply>;

export const QmpEvent = z.object({
  event: word,
  data: z.record(z.string(), z.unknown()).default({}),
});
export type QmpEvent = z.output<typeof QmpEvent>;

/** `query-status`. `status` is QEMU's RunState: "running", "paused", "inmigrate", "postmigrate", "io-error", … */
export const StatusInfo = z.object({ running: z.boolean(), status: word });
export type StatusInfo = z.output<typeof StatusInfo>;

/** `query-migrate`. No status: this QEMU has not migrated yet. */
export const MigrationInfo = z.object({
  status: word.optional(),
  "error-desc": text.optional(),
  ram: z.object({ transferred: count, remaining: count, total: count }).optional(),
  "blocked-reasons": z.array(text).max(64).optional(),
});
export type MigrationInfo = z.output<typeof MigrationInfo>;

export const MigrationCapabilities = z.array(z.object({ capability: word, state: z.boolean() })).max(256);

export const MigrationParameters = z.record(z.string(), z.unknown());

/** An image as QEMU has it open, and what it lies over. `format` is that of a filter, "throttle" say, where one is on top. */
export interface ImageNode {
  readonly filename: string;
  readonly format: string;
  readonly "virtual-size": number;
  readonly "backing-image"?: ImageNode | undefined;
}
export const ImageNode: z.ZodType<ImageNode> = z.lazy(() =>
  z.object({ filename: text, format: word, "virtual-size": count, "backing-image": ImageNode.optional() }),
);

/** `query-block`: what the guest's devices have inserted, if anything. */
export const BlockDevices = z.array(z.object({ inserted: z.object({ image: ImageNode }).optional() })).max(1024);
export type BlockDevices = z.output<typeof BlockDevices>;

/** Commands whose result is looked at. */
export const RESULTS = {
  "query-status": StatusInfo,
  "query-migrate": MigrationInfo,
  "query-migrate-capabilities": MigrationCapabilities,
  "query-migrate-parameters": MigrationParameters,
  "query-block": BlockDevices,
} as const;

/** `value` as `schema` wants it, or a `QmpProtocolError`. */
export function parseMessage<S extends z.ZodType>(schema: S, value: unknown, what: string): z.output<S> {
  const parsed = schema.safeParse(value);
  if (parsed.success) return parsed.data;
  const [issue] = parsed.error.issues;
  throw new QmpProtocolError(`${what} is not as QMP has it: ${issue?.path.join(".")}: ${issue?.message}`);
}
