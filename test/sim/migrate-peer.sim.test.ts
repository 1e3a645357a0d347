/** Ends of a migration's link, each against a peer that a test plays by hand. */
import { expect } from "vitest";
import type { ByteStream } from "../../src/env/links.ts";
import type { Channel } from "../../src/link/channel.ts";
import { Link } from "../../src/link/link.ts";
import { LinkDialer } from "../../src/link/link-dialer.ts";
import { dialLink, linkPort } from "../../src/link/upgrade.ts";
import { DestinationLink } from "../../src/migrate/destination-link.ts";
import { MessagePort } from "../../src/migrate/message-port.ts";
import { FromSource } from "../../src/migrate/messages.ts";
import { MESSAGE_LABEL } from "../../src/migrate/source-link.ts";
import { NbdServer } from "../../src/nbd/server/server.ts";
import { Change } from "../../src/stream/change.ts";
import { itSeeded } from "../support/seed.ts";
import { quietLog } from "./link-world.ts";
import { MigrateWorld } from "./migrate-world.ts";
import { SimWorld } from "./sim-env.ts";

const ADDRESS = { kind: "tcp", host: "source", port: 7000 } as const;
const LIMIT_MS = 60_000;
const IDENTITY = { trackingId: "70".repeat(16), term: 0 };
const PEER_ID = "d1".repeat(16);

itSeeded("a late answer to an earlier question does not stand for the answer to the last one", async (rng) => {
  const at = new MigrateWorld(rng.integer(1, 1e9));
  const source = await at.scheduler.complete(at.startSource(), LIMIT_MS);
  const env = at.world.host("dest").start();
  const link = new Link({
    ...{ env, role: "dialling", ownId: PEER_ID, identity: () => IDENTITY, log: quietLog },
    onChannel: (channel) => channel.destroy(),
  });
  const connect = (signal: AbortSignal) => dialLink(env, { address: ADDRESS, tls: { mode: "off" }, signal });
  const dialer = new LinkDialer({ env, link, connect, log: quietLog });
  let granted = 0;
  const port = new MessagePort(link.open("message", MESSAGE_LABEL), FromSource, {
    onMessage: (message) => {
      if (message.type === "welcome") port.send({ type: "ready", ready: true });
      else if (message.type === "prepare") {
        // In one turn, as they come when two rounds of pulling end at once.
        for (const id of [message.id, message.id - 1]) port.send({ type: "prepared", id });
      } else if (message.type === "grant") granted = message.term;
    },
    onClose: () => undefined,
  });
  port.send({
    ...{ type: "join", version: 1, mode: "hybrid", verdict: { state: "JOINED" }, written: false },
    disks: at.disks.map(({ name }) => name),
  });
  await at.scheduler.complete(source.whenPhase("ready"), LIMIT_MS);
  const switching = source.switchover();
  await at.scheduler.complete(Promise.race([source.whenPhase("granted"), switching]), LIMIT_MS);
  await at.scheduler.runFor(1000);
  expect(granted).toBe(1);
  port.send({ type: "active", term: granted });
  await at.scheduler.complete(switching, LIMIT_MS);
  await at.scheduler.complete(link.close(), LIMIT_MS);
  await at.scheduler.complete(dialer.close(), LIMIT_MS);
  await at.close();
});

itSeeded("a destination whose link has no channel left opens its message channel once there is one", async (rng) => {
  const { scheduler, ...hosts } = peersOfALink(rng.integer(1, 1e9));
  const { dest, port, peer, warnings, change } = hosts;
  let messages: Channel | undefined;
  peer.onChannel = (channel) => {
    messages = channel;
    change.notify();
  };
  const opened = async (): Promise<Channel> => {
    while (messages === undefined) await change.next();
    return messages;
  };
  dest.start();
  const first = await scheduler.complete(opened(), LIMIT_MS);
  messages = undefined;
  first.destroy();
  const tunnel = peer.link.open("tunnel", "tunnel/t");
  await scheduler.runFor(5000);
  expect([messages, warnings.length > 0]).toEqual([undefined, true]);
  tunnel.destroy();
  expect((await scheduler.complete(opened(), LIMIT_MS)).label).toBe(MESSAGE_LABEL);
  await scheduler.complete(dest.close(), LIMIT_MS);
  await scheduler.complete(peer.link.close(), LIMIT_MS);
  await scheduler.complete(port.close(), LIMIT_MS);
});

/** A destination's end, which has one channel and no more, and a peer. */
function peersOfALink(seed: number) {
  const world = new SimWorld(seed);
  const [here, there] = [world.host("source").start(), world.host("dest").start()];
  const change = new Change();
  const warnings: string[] = [];
  const peer = {
    onChannel: (_channel: Channel): void => undefined,
    link: new Link({
      ...{ env: here, role: "listening", linkId: "b1".repeat(16), ownId: "c1".repeat(16), log: quietLog },
      identity: () => IDENTITY,
      onChannel: (channel) => peer.onChannel(channel),
    }),
  };
  const port = new NbdServer({ clock: here.clock, exports: [], upgrade: linkPort(() => peer.link), log: quietLog });
  here.links.listen(ADDRESS, (stream: ByteStream) => port.accept(stream));
  const dest = new DestinationLink({
    ...{ env: there, limits: { channelsMax: 1 }, ownId: PEER_ID, identity: () => IDENTITY },
    log: { ...quietLog, warn: (message) => void warnings.push(message) },
    linkId: () => undefined,
    connect: (signal) => dialLink(there, { address: ADDRESS, tls: { mode: "off" }, signal }),
    onTunnel: () => undefined,
    ...{ onPort: () => undefined, onMessage: () => undefined, onPortClosed: () => undefined },
    ...{ onConnected: () => undefined, onRefused: () => true },
  });
  return { scheduler: world.scheduler, dest, port, peer, warnings, change };
}
