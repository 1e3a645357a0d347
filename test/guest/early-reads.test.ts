/** What a QEMU that waits for a guest does to its disks before they are its own. */
import { readFileSync } from "node:fs";
import { expect } from "vitest";
import { runDestination } from "../../src/qmp/destination.ts";
import { SourceChoreography } from "../../src/qmp/source.ts";
import { itBoots, startGuest } from "../support/guest.ts";
import { emptyDisk } from "../support/guest-disk.ts";
import { makeImage } from "../support/patterns.ts";
import { nbdkitIn } from "../support/peers.ts";
import { tempDir } from "../support/temp-dir.ts";

interface Access {
  readonly what: string;
  readonly offset: number;
  readonly length: number;
}

/** What nbdkit's log filter noted of requests. */
function accessesIn(path: string): Access[] {
  const line =
    /\b(Read|Write|Flush|Trim|Zero|Extents|Cache) id=\d+(?: offset=(0x[0-9a-f]+) count=(0x[0-9a-f]+))?.* \.\.\.$/gm;
  return [...readFileSync(path, "latin1").matchAll(line)].map(([, what = "", offset = "0", length = "0"]) => ({
    what,
    offset: Number(offset),
    length: Number(length),
  }));
}

itBoots(
  ["nbdkit"],
  "an incoming QEMU reads the first sector when it starts, and nothing else until the disks are given",
  async () => {
    using folder = tempDir();
    const log = folder.file("log");
    emptyDisk(folder.file("vda.raw"), 64);
    makeImage(folder.file("there.raw"), 64 * 2 ** 20);
    await using nbd = await nbdkitIn(folder, "--filter=log", "file", folder.file("there.raw"), `logfile=${log}`);
    const uri = `unix:${folder.file("ram")}`;
    await using source = await startGuest({ folder, disks: [{ file: folder.file("vda.raw") }] });
    const there = { socket: (nbd.address as { path: string }).path };
    await using destination = await startGuest({ folder, name: "dst", disks: [there], incoming: uri });
    const client = await destination.qmp();
    expect((await client.execute("query-status")).status).toBe("inmigrate");
    const started = accessesIn(log);
    expect(started).toEqual([{ what: "Read", offset: 0, length: 512 }]);

    await source.log.more("synced", 2);
    const reason = new Error("enough was seen");
    const arriving = runDestination({ client, gate: { mayStart: async () => ({ kind: "abandon", reason }) } });
    const handOver = async (): Promise<{ kind: "given" }> => {
      expect(accessesIn(log)).toEqual(started);
      return { kind: "given" };
    };
    const move = new SourceChoreography({ client: await source.qmp(), handOver: { handOver } });
    expect(await move.run(uri)).toMatchObject({ kind: "completed" });
    expect(await arriving).toEqual({ kind: "abandoned", reason });
    await destination.ended;
    console.log(`an incoming QEMU, until it quits: ${JSON.stringify(accessesIn(log))}`);
    expect(accessesIn(log).filter(({ what }) => what !== "Read" && what !== "Flush")).toEqual([]);
  },
);
