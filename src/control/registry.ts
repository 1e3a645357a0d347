/**
 * The verbs of one instance. Layers register what they can do; this room knows none of them. Parameters and results are
 * checked here, so that a handler gets what its schema says, and a client gets what the schema says.
 */
import type * as z from "zod";
import { ControlError, describeZodError } from "./errors.ts";
import type { EventSource } from "./subscription.ts";

export interface VerbCall {
  /** Aborted when the client is gone or the instance ends. */
  readonly signal: AbortSignal;
  /** What `events` publishes goes to this client from now on. */
  subscribe(events: EventSource): void;
}

type Result = Readonly<Record<string, unknown>>;

/** May throw or reject with `ControlError` to refuse. Anything else that it throws is our bug. */
export type VerbHandler<P extends z.ZodType, R extends z.ZodType> = (
  params: z.output<P>,
  call: VerbCall,
) => z.input<R> | Promise<z.input<R>>;

type CheckedHandler = (params: unknown, call: VerbCall) => Result | Promise<Result>;

export class VerbRegistry {
  readonly #handlers = new Map<string, CheckedHandler>();

  get verbs(): string[] {
    return [...this.#handlers.keys()].sort();
  }

  has(verb: string): boolean {
    return this.#handlers.has(verb);
  }

  /** Usually with `VERBS[verb]` as the schemas. A verb has one handler. */
  register<P extends z.ZodType, R extends z.ZodType>(
    verb: string,
    schemas: { readonly params: P; readonly result: R },
    handler: VerbHandler<P, R>,
  ): void {
    if (this.#handlers.has(verb)) throw new Error(`the verb ${verb} is registered twice`);
    const checked = (result: unknown): Result => checkResult(verb, schemas.result, result);
    this.#handlers.set(verb, (given, call) => {
      const params = schemas.params.safeParse(given);
      if (!params.success) throw new ControlError("bad-params", `${verb}: ${describeZodError(params.error)}`);
      const result = handler(params.data, call);
      return result instanceof Promise ? result.then(checked) : checked(result);
    });
  }

  /**
   * Throws, or rejects with, `ControlError` for what cannot be asked. A handler that answers without waiting is answered
   * for without waiting: what it subscribed to cannot come before its reply.
   */
  call(verb: string, params: unknown, call: VerbCall): Result | Promise<Result> {
    const handler = this.#handlers.get(verb);
    if (handler !== undefined) return handler(params, call);
    const known = this.verbs.join(", ");
    throw new ControlError(
      "unknown-verb",
      `this instance does not know the verb ${JSON.stringify(verb)}`,
      `it knows: ${known}`,
    );
  }
}

function checkResult(verb: string, schema: z.ZodType, result: unknown): Result {
  const parsed = schema.safeParse(result);
  if (parsed.success) return parsed.data as Result;
  throw new Error(`the handler of ${verb} gave a bad result: ${describeZodError(parsed.error)}`);
}
