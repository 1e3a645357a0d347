/** How a destination takes disks, and how it lets go of them again. All of it runs in the destination's line. */
import type { DestinationGroup, Grant } from "./destination-group.ts";
import type { DestinationPort } from "./destination-link.ts";
import { messageOf } from "./errors.ts";
import type { PhaseBook } from "./phase-book.ts";
import type { DestinationPhase } from "./phases.ts";

export class DestinationHandover {
  readonly #group: DestinationGroup;
  readonly #phases: PhaseBook<DestinationPhase>;

  constructor(group: DestinationGroup, phases: PhaseBook<DestinationPhase>) {
    this.#group = group;
    this.#phases = phases;
  }

  /** A grant may come again, and is taken up once: the record says what became of it. */
  async onGrant(port: DestinationPort, grant: Grant): Promise<void> {
    const { state, term } = this.#group.record;
    if (state === "COMPLETE") return port.send({ type: "complete", term });
    if (state === "ACTIVE") return port.send({ type: "active", term });
    if (state !== "JOINED") return this.#sayLetGo(port);
    if (grant.term <= term || !this.#phases.is("precopy", "ready")) {
      return this.#phases.warn("a grant came that cannot be taken up");
    }
    try {
      const fresh = await this.#group.takeOver(grant);
      if (fresh.length > 0) this.#phases.warn(`nothing that was pulled of ${fresh.join(", ")} counts`);
    } catch (error) {
      return await this.#decline(port, grant.term, messageOf(error));
    }
    this.#group.goLive(false);
    this.#phases.advance("active");
    port.send({ type: "active", term: grant.term });
    await this.#group.writeOwners();
  }

  /** The source wants its disks back. It gets them unless this host's guest has written. */
  async onRecall(port: DestinationPort, term: number): Promise<void> {
    const { state, term: ours } = this.#group.record;
    if (state === "JOINED" && term > ours) return await this.#decline(port, term, "the source wants its disks back");
    if (state === "DECLINED" || state === "RETURNED") return this.#sayLetGo(port);
    const { wrote } = this.#group;
    if (state !== "ACTIVE" || term !== ours || wrote) {
      const reason = wrote ? "the destination's guest has written" : "the disks are in use over here";
      return port.send({ type: "kept", term, reason });
    }
    await this.#group.giveBack(term + 1, () => port.send({ type: "returned", term: term + 1 }));
    this.#phases.advance("returning");
    this.#sayLetGo(port);
  }

  /** Every disk is here. Durable before the source is told. */
  async onHydrated(port: () => DestinationPort | undefined): Promise<void> {
    if (this.#group.record.state !== "ACTIVE") return;
    await this.#group.complete();
    this.#phases.advance("hydrated");
    port()?.send({ type: "complete", term: this.#group.record.term });
    await this.#group.writeOwners();
  }

  async #decline(port: DestinationPort, term: number, reason: string): Promise<void> {
    try {
      await this.#group.decline(term);
    } catch (error) {
      this.#phases.warn(`nobody can say whether the disks were taken (${reason}; ${messageOf(error)})`);
      this.#phases.advance("failed");
      return;
    }
    this.#phases.warn(`the disks were declined: ${reason}`);
    this.#phases.advance("returning");
    this.#sayLetGo(port);
  }

  #sayLetGo(port: DestinationPort): void {
    const { state, term } = this.#group.record;
    const reason = this.#phases.lastError ?? "as was said before";
    if (state === "RETURNED") port.send({ type: "returned", term });
    else port.send({ type: "declined", term, reason: reason.slice(0, 1000) });
  }
}
