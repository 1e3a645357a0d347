/** Waits until something about QEMU is so: asked for at every event, and every so often besides, since events may be off. */
import type { QmpClient } from "./client.ts";
import { POLL_MS } from "./limits.ts";
import type { MigrationInfo, StatusInfo } from "./messages.ts";

export interface WatchOptions<T> {
  readonly client: QmpClient;
  /** Events after which to look. */
  readonly events: readonly string[];
  readonly ask: () => Promise<T>;
  readonly until: (answer: T) => boolean;
  readonly pollMs?: number;
  /** When given up: the last answer is the result then. */
  readonly timeoutMs?: number;
}

/** Resolves to the first answer that is as wanted. Rejects with what `ask` does, which includes a lost connection. */
export async function watch<T>(options: WatchOptions<T>): Promise<T> {
  const { client, events, ask, until, pollMs = POLL_MS, timeoutMs = Infinity } = options;
  const { clock } = client;
  const lastMs = clock.nowMs() + timeoutMs;
  let wake = Promise.withResolvers<void>();
  using _listening = client.listen(({ event }) => {
    if (events.includes(event)) wake.resolve();
  });
  void client.closed.then(() => wake.resolve());
  for (;;) {
    // What happens while the answer is on its way may not be in it.
    wake = Promise.withResolvers<void>();
    const answer = await ask();
    if (until(answer) || clock.nowMs() >= lastMs) return answer;
    const timer = clock.setTimer(Math.min(pollMs, lastMs - clock.nowMs()), () => wake.resolve());
    await wake.promise;
    timer.cancel();
  }
}

/** As `watch`, for the state of the migration. `progress` sees every answer. */
export function watchMigration(
  client: QmpClient,
  until: (info: MigrationInfo) => boolean,
  progress?: (info: MigrationInfo) => void,
): Promise<MigrationInfo> {
  const ask = async (): Promise<MigrationInfo> => {
    // However long QEMU's main loop is held up by a slow disk: only a lost connection ends the waiting.
    const info = await client.execute("query-migrate", undefined, { timeoutMs: null });
    progress?.(info);
    return info;
  };
  return watch({ client, events: ["MIGRATION"], ask, until });
}

export function watchStatus(
  client: QmpClient,
  until: (info: StatusInfo) => boolean,
  limits: { readonly pollMs: number; readonly timeoutMs: number },
): Promise<StatusInfo> {
  const ask = () => client.execute("query-status", undefined, { timeoutMs: null });
  return watch({ client, events: ["RESUME", "STOP"], ask, until, ...limits });
}
