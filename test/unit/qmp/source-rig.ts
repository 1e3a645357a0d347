/** A `SourceChoreography` between a QEMU that is played by hand and a hand-over that a test settles. */
import type { QmpClient } from "../../../src/qmp/client.ts";
import { type HandOverResult, SourceChoreography } from "../../../src/qmp/source.ts";
import type { SourceOutcome, SourcePhase } from "../../../src/qmp/source-states.ts";
import { FakeQemu, settle } from "./fake-qemu.ts";

export const URI = "unix:/run/vm.ram";
export const GIVEN: HandOverResult = { kind: "given" };
const ACTIVE = { ram: { transferred: 1, remaining: 2, total: 3 } };

export class Rig {
  readonly qemu: FakeQemu;
  readonly source: SourceChoreography;
  readonly phases: SourcePhase[] = [];
  readonly handedOver = Promise.withResolvers<HandOverResult>();
  handOvers = 0;
  signal: AbortSignal | undefined;

  static async start(qemu = new FakeQemu()): Promise<Rig> {
    return new Rig(qemu, await qemu.connect());
  }

  private constructor(qemu: FakeQemu, client: QmpClient) {
    this.qemu = qemu;
    const onProgress = (phase: SourcePhase): void => {
      if (this.phases.at(-1) !== phase) this.phases.push(phase);
    };
    const handOver = (signal: AbortSignal): Promise<HandOverResult> => {
      this.handOvers += 1;
      this.signal = signal;
      return this.handedOver.promise;
    };
    this.source = new SourceChoreography({ client, limits: { downtimeMs: 100 }, onProgress, handOver: { handOver } });
  }

  /** Begins, and goes on to where memory moves. */
  async begin(): Promise<{ readonly outcome: Promise<SourceOutcome> }> {
    const outcome = this.source.run(URI);
    await settle();
    this.qemu.migrate("active", ACTIVE);
    await settle();
    return { outcome };
  }

  /** As `begin`, on to where QEMU waits for the hand-over. */
  async beginHandOver(): Promise<{ readonly outcome: Promise<SourceOutcome> }> {
    const begun = await this.begin();
    this.qemu.setGuest("finish-migrate");
    this.qemu.clock.advance(3);
    this.qemu.migrate("pre-switchover");
    await settle();
    return begun;
  }

  /** What QEMU does when its migration comes to nothing: the guest runs on, a moment later. */
  async guestResumes(status: string, more: object = {}): Promise<void> {
    this.qemu.migrate(status, more);
    await settle();
    this.qemu.setGuest("running");
    await settle();
  }
}
