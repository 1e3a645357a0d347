/**
 * `guest.record` in the state directory: what is to be known of a guest on its way by whoever comes after this process. Whose
 * the disks are is not in it; of the guest, QEMU tells the rest.
 */
import { join } from "node:path";
import * as z from "zod";
import type { Env } from "../../env/env.ts";
import { messageOf } from "../../migrate/errors.ts";
import { ID } from "../../migrate/owner-record.ts";
import { readRecord, removeRecord, writeRecord } from "../../migrate/record-file.ts";
import type { SourceMigration } from "../../migrate/source.ts";
import type { Log } from "../log.ts";

const GuestNote = z.strictObject({
  version: z.literal(1),
  migrationId: ID,
  /** Who has its memory, or gets it. */
  destinationId: ID,
  /** Or paused, by whoever runs it: then it is to be paused wherever it comes to be. */
  guestWasRunning: z.boolean(),
  /** `moving`: QEMU was, or was about to be, told to send it. `started`: it was let run over there. */
  state: z.enum(["moving", "started"]),
});
export type GuestNote = z.output<typeof GuestNote>;

export class GuestNotes {
  readonly #env: Pick<Env, "files">;
  readonly #path: string;
  readonly #migration: SourceMigration;
  readonly #log: Log;

  constructor(
    env: Pick<Env, "files">,
    stateDirectory: string,
    { migration, log }: { migration: SourceMigration; log: Log },
  ) {
    this.#env = env;
    this.#path = join(stateDirectory, "guest.record");
    this.#migration = migration;
    this.#log = log;
  }

  /** Of the guest that is on its way, or has gone, to the destination that is there now; undefined: nothing is known. */
  async read(): Promise<GuestNote | undefined> {
    const note = await this.readOfAny();
    return note?.destinationId === this.#migration.status().destinationId ? note : undefined;
  }

  /** The same, whichever destination is there, if any. */
  async readOfAny(): Promise<GuestNote | undefined> {
    const { migrationId } = this.#migration.status();
    const note = await readRecord(this.#env, this.#path, GuestNote).catch((error: unknown) => {
      this.#log.warn("what was noted of the guest cannot be read", { why: messageOf(error) });
      return undefined;
    });
    return note?.migrationId === migrationId ? note : undefined;
  }

  /** Durable when resolved. Rejects with what files fail with. */
  async write(state: GuestNote["state"], guestWasRunning: boolean): Promise<void> {
    const { migrationId, destinationId } = this.#migration.status();
    if (destinationId === undefined) throw new Error("there is no destination");
    const note: GuestNote = { version: 1, migrationId, destinationId, guestWasRunning, state };
    await writeRecord(this.#env, this.#path, note);
  }

  /** It stays here. A note that cannot be removed says of a guest that has gone on that it was left standing, which shows. */
  async remove(): Promise<void> {
    await removeRecord(this.#env, this.#path).catch((error: unknown) => {
      this.#log.warn("what was noted of the guest cannot be removed", { why: messageOf(error) });
    });
  }
}
