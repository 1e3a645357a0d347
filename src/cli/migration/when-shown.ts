/** Waiting, on behalf of a client that may leave, for what a migration shows of itself: a phase, with the link that it needs. */
import { ControlError } from "../../control/errors.ts";

export interface Watched<Shown extends string> {
  status(): { readonly shown: Shown };
  onEvent(listener: () => void): () => void;
}

/** Resolves to the first of `wanted` that is shown. Rejects when `signal` is aborted, as it is when the instance ends. */
export async function whenShown<Shown extends string>(
  migration: Watched<Shown>,
  wanted: readonly NoInfer<Shown>[],
  signal: AbortSignal,
): Promise<Shown> {
  const { promise, resolve, reject } = Promise.withResolvers<Shown>();
  const look = (): void => {
    const { shown } = migration.status();
    if (wanted.includes(shown)) resolve(shown);
  };
  const onAbort = (): void => reject(new ControlError("closing", "nobody waits for it any more"));
  const unsubscribe = migration.onEvent(look);
  signal.addEventListener("abort", onAbort, { once: true });
  try {
    if (signal.aborted) onAbort();
    look();
    return await promise;
  } finally {
    unsubscribe();
    signal.removeEventListener("abort", onAbort);
  }
}
