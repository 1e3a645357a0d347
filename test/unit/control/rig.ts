/** A control server in memory, and clients of it: proper ones, and raw ones that say whatever they like. */
import * as z from "zod";
import { ControlClient } from "../../../src/control/client.ts";
import { EventHub } from "../../../src/control/event-hub.ts";
import { decodeBody, encodeMessage, FrameReader } from "../../../src/control/frame.ts";
import { Milestones } from "../../../src/control/milestones.ts";
import { VerbRegistry } from "../../../src/control/registry.ts";
import { ControlServer } from "../../../src/control/server.ts";
import { VERBS } from "../../../src/control/verbs.ts";
import { type PairedStream, type PairOptions, streamPair } from "../../support/stream-pair.ts";
import { ManualClock } from "../nbd/client/manual-clock.ts";

export const anything = { params: z.looseObject({}), result: z.looseObject({}) };

export class ControlRig {
  readonly clock = new ManualClock();
  readonly registry = new VerbRegistry();
  readonly events = new EventHub(this.clock);
  readonly milestones: Milestones;
  readonly server: ControlServer;
  readonly logged: string[] = [];

  constructor() {
    const { clock, registry, events } = this;
    this.milestones = new Milestones({ clock, events, possible: ["listening", "hydrated"] });
    events.registerVerbs(registry);
    this.milestones.registerVerbs(registry);
    registry.register("quit", VERBS.quit, () => ({}));
    const log = (message: string, fields?: object): number => this.logged.push(`${message} ${JSON.stringify(fields)}`);
    const identity = { program: "blockferry", programVersion: "1.2.3", pid: 4711, role: "clone" };
    this.server = new ControlServer({ registry, identity, clock, log: { warn: log, error: log } });
  }

  async connect(options: PairOptions = {}): Promise<ControlClient> {
    const { client, server } = streamPair(options);
    this.server.accept(server);
    return await ControlClient.connect(client, this.clock);
  }

  raw(options: PairOptions = {}): RawPeer {
    const { client, server } = streamPair(options);
    const peer = new RawPeer(client, server);
    this.server.accept(server);
    return peer;
  }
}

export class RawPeer {
  readonly stream: PairedStream;
  /** The server's end. */
  readonly far: PairedStream;
  readonly messages: Record<string, unknown>[] = [];
  closed = false;
  readonly #reader = new FrameReader();

  constructor(stream: PairedStream, far: PairedStream) {
    this.stream = stream;
    this.far = far;
    stream.attach({
      onBytes: (bytes) =>
        void this.#reader.push(bytes, (body) => {
          this.messages.push(decodeBody(body) as Record<string, unknown>);
          return true;
        }),
      onEnd: () => {},
      onClose: () => {
        this.closed = true;
      },
      onDrain: () => {},
    });
  }

  send(message: object): void {
    this.stream.write(encodeMessage(message));
  }
}

/** Lets everything that can happen by itself happen. */
export async function settle(): Promise<void> {
  for (let turn = 0; turn < 20; turn++) await new Promise((resolve) => setImmediate(resolve));
}
