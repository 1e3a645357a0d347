/**
 * How a destination takes disks, and how it lets go of them again. All of it runs in the destination's line. Of what cannot
 * be written down there is no way back: for all that is known it may be there after the next crash. So it is tried again.
 */
import type { Clock } from "../env/clock.ts";
import type { DestinationGroup, Grant } from "./destination-group.ts";
import type { DestinationPort } from "./destination-link.ts";
import { messageOf } from "./errors.ts";
import type { PhaseBook } from "./phase-book.ts";
import type { DestinationPhase } from "./phases.ts";
import { Retries } from "./retries.ts";
import type { Serial } from "./serial.ts";

export interface HandoverParts {
  readonly clock: Clock;
  readonly line: Serial;
  readonly group: DestinationGroup;
  readonly phases: PhaseBook<DestinationPhase>;
  /** The one of this moment. */
  readonly port: () => DestinationPort | undefined;
}

export class DestinationHandover {
  readonly #group: DestinationGroup;
  readonly #phases: PhaseBook<DestinationPhase>;
  readonly #port: () => DestinationPort | undefined;
  readonly #retries: Retries;

  constructor({ clock, line, group, phases, port }: HandoverParts) {
    this.#group = group;
    this.#phases = phases;
    this.#port = port;
    const onFailure = (error: unknown): void => phases.warn(`${messageOf(error)}; it is tried again`);
    this.#retries = new Retries({ clock, line, onFailure });
  }

  /** Nothing is tried again. */
  stop(): void {
    this.#retries.stop();
  }

  /** A grant may come again, and is taken up once: the record says what became of it. */
  async onGrant(port: DestinationPort, grant: Grant): Promise<void> {
    const { state, term } = this.#group.record;
    if (state === "COMPLETE") return port.send({ type: "complete", term });
    if (state === "ACTIVE") return port.send({ type: "active", term });
    if (state !== "JOINED") return this.#sayLetGo();
    // The source had not heard yet that it was declined, since that could not be written down.
    if (this.#phases.is("returning")) return await this.#decline(grant.term, "as was said before");
    if (grant.term <= term || !this.#phases.is("precopy", "ready")) {
      return this.#phases.warn("a grant came that cannot be taken up");
    }
    let syncMs: number;
    try {
      const taken = await this.#group.takeOver(grant);
      syncMs = taken.syncMs;
      if (taken.fresh.length > 0) this.#phases.warn(`nothing that was pulled of ${taken.fresh.join(", ")} counts`);
    } catch (error) {
      return await this.#decline(grant.term, messageOf(error));
    }
    this.#group.goLive(false);
    this.#phases.advance("active");
    port.send({ type: "active", term: grant.term, syncMs });
    await this.#group.leisure;
    await this.#group.writeOwners();
  }

  /** The source wants its disks back. It gets them unless this host's guest has written. */
  async onRecall(port: DestinationPort, term: number): Promise<void> {
    const { state, term: ours } = this.#group.record;
    if (state === "JOINED" && term > ours) return await this.#decline(term, "the source wants its disks back");
    if (state === "DECLINED" || state === "RETURNED") return this.#sayLetGo();
    const { wrote } = this.#group;
    if (state !== "ACTIVE" || term !== ours || wrote) {
      const reason = wrote ? "the destination's guest has written" : "the disks are in use over here";
      return port.send({ type: "kept", term, reason });
    }
    const early = (): void => port.send({ type: "returned", term: term + 1 });
    await this.#letGo(term, () => this.#group.giveBack(term + 1, early));
  }

  /** Every disk is here. Durable before the source is told. */
  async onHydrated(): Promise<void> {
    await this.#retries.attempt("complete", async () => {
      if (this.#group.record.state === "ACTIVE" && this.#phases.is("active")) {
        await this.#group.complete();
        this.#phases.advance("hydrated");
        this.#port()?.send({ type: "complete", term: this.#group.record.term });
      }
      if (this.#group.record.state === "COMPLETE") await this.#group.writeOwners();
    });
  }

  async #decline(term: number, reason: string): Promise<void> {
    await this.#letGo(term, async () => {
      await this.#group.decline(term);
      this.#phases.warn(`the disks were declined: ${reason}`);
    });
  }

  /**
   * `write` begins in this very turn: who has just seen that no guest has written may rely on that. The source is told what
   * has become of it, either way, each time.
   */
  async #letGo(term: number, write: () => Promise<void>): Promise<void> {
    this.#phases.advance("returning");
    await this.#retries.attempt("let go", async () => {
      try {
        await write();
      } catch (error) {
        const reason = `the destination cannot write down that it lets go of the disks: ${messageOf(error)}`;
        this.#port()?.send({ type: "kept", term, reason });
        throw error;
      }
      this.#sayLetGo();
    });
  }

  #sayLetGo(): void {
    const port = this.#port();
    const { state, term } = this.#group.record;
    const reason = this.#phases.lastError ?? "as was said before";
    if (state === "RETURNED") port?.send({ type: "returned", term });
    else port?.send({ type: "declined", term, reason });
  }
}
