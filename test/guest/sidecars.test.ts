/** A real guest moves from one QEMU to another: memory and two disks, through our sidecars, over one TCP connection. */
import { expect } from "vitest";
import { type GateResult, runDestination } from "../../src/qmp/destination.ts";
import { SourceChoreography } from "../../src/qmp/source.ts";
import { type LineProcess, startLine } from "../../tools/line/client.ts";
import { parseAddress } from "../../tools/line/options.ts";
import { linkOf, Rig, tcpConnectionsOf } from "../interop/migrate/rig.ts";
import { type GuestDisk, itBoots, startGuest } from "../support/guest.ts";
import { emptyDisk, expectSoundDisk } from "../support/guest-disk.ts";
import { tempDir } from "../support/temp-dir.ts";

const DISKS = ["vda", "vdb"] as const;
/** Of the tens of MiB that a booted guest's memory takes on the wire. */
const MEMORY_BYTES_BEFORE_CUT = 4 << 20;

itBoots([], "a guest with two disks moves through source and dest while it writes, and the source may die", () =>
  move(),
);

itBoots([], "the link is cut under the guest's memory and again under its disks, and it notices nothing", () =>
  move({ cut: true }),
);

itBoots([], "the destination is killed under the guest and started again, and the guest notices nothing", () =>
  move({ kill: true }),
);

/**
 * `cut`: the link is cut twice: first while memory is on its way, then after the switchover. `kill`: the destination
 * is killed under the guest that has arrived, and started again.
 */
async function move({ cut = false, kill = false } = {}): Promise<void> {
  using folder = tempDir();
  const rig = new Rig(folder, DISKS);
  for (const disk of DISKS) emptyDisk(rig.image("a", disk));
  const [near, far] = [folder.file("near"), folder.file("far")];
  const disksAt = (socket: string): GuestDisk[] =>
    DISKS.map((exportName) => ({ socket, exportName, reconnectSeconds: 20 }));

  const sidecarA = await rig.source({ flags: ["--tunnel", `ram=unix:${near}`] });
  await using _a = sidecarA;
  await using line = await startLine({ target: parseAddress(await linkOf(sidecarA)), rttMs: 1 });
  await using guestA = await startGuest({ folder, name: "src", disks: disksAt(rig.socket("a")) });
  const working = Promise.all(DISKS.map((disk) => guestA.log.more("synced", 3, disk)));
  const flags = ["--tunnel", `ram=unix:${far}`, "--rate", "16K", ...(cut || kill ? ["--mode", "postcopy"] : [])];
  const address = cut ? addressOf(line) : await linkOf(sidecarA);
  await using first = await rig.dest(address, { flags });
  const incoming = `unix:${far}`;
  await using guestB = await startGuest({
    ...{ folder, name: "dst", disks: disksAt(rig.socket("b")), incoming, log: guestA.log },
  });
  const [qmpA, qmpB] = await Promise.all([guestA.qmp(), guestB.qmp()]);
  await working;
  await sidecarA.reached("ready");

  const completed = Promise.withResolvers<GateResult>();
  const arriving = runDestination({ client: qmpB, gate: { mayStart: () => completed.promise } });
  // To the byte, and not when QEMU is seen to be at it: it may be done between two looks. Before the switchover of
  // a post-copy migration, nothing but the guest's memory is as long as this.
  if (cut) await line.cut({ direction: "down", afterBytes: MEMORY_BYTES_BEFORE_CUT });
  const choreography = new SourceChoreography({
    client: qmpA,
    handOver: {
      handOver: async () => {
        expect(await tcpConnectionsOf(sidecarA)).toHaveLength(1);
        if (cut) expect((await line.stats()).connections).toMatchObject({ cut: 1 });
        const { pauseSeconds } = await sidecarA.switchover();
        console.log(`writes were held for ${Math.round((pauseSeconds ?? 0) * 1000)} ms`);
        return { kind: "given" };
      },
    },
  });
  expect(await choreography.run(`unix:${near}`)).toMatchObject({ kind: "completed" });
  completed.resolve({ kind: "start", guestWasRunning: true });
  expect(await arriving).toMatchObject({ kind: "started", guest: { status: "running" } });

  await guestA.kill();
  if (cut) {
    expect((await first.status()).migration?.phase).toBe("active");
    await line.cutNow();
  }
  if (kill) await first.kill();
  await using sidecarB = kill ? await rig.dest(address, { flags }) : first;
  await Promise.all(DISKS.map((disk) => guestB.log.more("synced", 3, disk)));
  await sidecarB.call("set-speed", { bytesPerSecond: null });
  await sidecarB.reached("complete");
  await sidecarA.kill();
  await guestB.verifyAll(DISKS);
  await guestB.finish();
  expect(guestB.log.complaints()).toEqual([]);
  expect(await sidecarB.stop()).toBe(0);
  for (const disk of DISKS) await expectSoundDisk(rig.image("b", disk), disk, guestB.log);
}

function addressOf({ address }: LineProcess): string {
  if (address.kind !== "tcp") throw new Error("lines listen on TCP");
  return `${address.host}:${address.port}`;
}
