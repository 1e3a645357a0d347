/** What a destination finds written down when it starts, and what it makes of it. */
import { describe, expect, test } from "vitest";
import { claimPlaces, filesOf, findRecord } from "../../../src/migrate/destination-files.ts";
import type { DestinationDisk } from "../../../src/migrate/destination-options.ts";
import { type DestinationRecord, writeDestination } from "../../../src/migrate/group-records.ts";
import { type OwnerRecord, readOwner, writeOwner } from "../../../src/migrate/owner-record.ts";
import { FakeFiles } from "../../support/fake-files.ts";
import { world } from "../cor/support.ts";

const OURS = "a1".repeat(16);
const OTHER = "b2".repeat(16);
const IMAGE = "/vm/vda.raw";
const DEVICE_RECORDS = "/var/devices/dm-1";
const format = { create: () => Promise.reject(new Error("no")), open: () => Promise.reject(new Error("no")) };
const FILE: DestinationDisk = { name: "vda", image: IMAGE, format };

function record(state: DestinationRecord["state"], term = 1): DestinationRecord & { migrationId: string } {
  const disk = { name: "vda", image: IMAGE, sizeBytes: 4096, clusterBytes: 512, uuid: OURS };
  return { version: 1, state, destinationId: OURS, migrationId: OURS, term, disks: [disk] };
}

function owner(state: OwnerRecord["state"], term: number, writtenBy = OURS): OwnerRecord {
  const names = { migrationId: writtenBy, destinationId: writtenBy, disk: "vda", group: ["vda"] };
  return { version: 1, state, term, writtenBy, ...names, stateDirectory: "/state" };
}

/** A device: what may be taken, and how often that was asked. */
function device(may = true): { disk: DestinationDisk; asked: () => number } {
  let asked = 0;
  const mayTake = async (): Promise<void> => {
    asked += 1;
    if (!may) throw new Error("not this one");
  };
  return { disk: { ...FILE, records: DEVICE_RECORDS, mayTake }, asked: () => asked };
}

async function start(known: DestinationRecord, found: OwnerRecord | undefined, disk = FILE) {
  const files = new FakeFiles();
  const env = world(files);
  const records = disk.records ?? disk.image;
  await writeDestination(env, "/state", known);
  files.add(IMAGE, 4096);
  if (found !== undefined) await writeOwner(env, records, found);
  const result = await findRecord(env, { disks: [disk], stateDirectory: "/state" }).catch((error: unknown) => error);
  expect(await readOwner(env, records)).toEqual(found);
  return result;
}

describe("a destination that starts again", () => {
  test("goes on with disks that are its own", async () => {
    for (const found of [owner("PENDING", 0), owner("ACTIVE", 1), owner("OWNER", 1), undefined]) {
      for (const state of ["ACTIVE", "COMPLETE"] as const) {
        expect(await start(record(state), found)).toMatchObject({ state, term: 1 });
      }
    }
  });

  test("leaves disks alone that were given away since, or took part in another migration", async () => {
    for (const found of [owner("FENCED", 2, OTHER), owner("RELEASED", 2, OTHER), owner("OWNER", 3, OTHER)]) {
      for (const state of ["ACTIVE", "COMPLETE"] as const) {
        expect(await start(record(state), found)).toMatchObject({ code: "owned-elsewhere" });
      }
    }
    expect(await start(record("COMPLETE"), owner("FENCED", 2, OTHER), device().disk)).toMatchObject({
      code: "owned-elsewhere",
    });
  });

  test("begins anew on a device whose disk came here once and has moved on, if it may be written over", async () => {
    const moved = owner("RELEASED", 2, OTHER);
    expect(await start(record("COMPLETE"), moved, device().disk)).toMatchObject({ state: "JOINED", disks: [] });
    expect(await start(record("COMPLETE"), moved, device(false).disk)).toMatchObject({ message: "not this one" });
  });
});

describe("a destination's device", () => {
  test("is asked for before it is claimed, but for one that this migration has claimed", async () => {
    const files = new FakeFiles();
    const env = world(files);
    files.add(IMAGE, 4096, "block-device");
    const { disk, asked } = device();
    const options = { disks: [disk], stateDirectory: "/state" };
    await claimPlaces(env, options, record("JOINED"));
    await claimPlaces(env, options, record("JOINED"));
    expect(asked()).toBe(1);
    expect(await readOwner(env, DEVICE_RECORDS)).toMatchObject({ state: "PENDING" });
    expect(await readOwner(env, IMAGE)).toBeUndefined();
    const refused = { disks: [device(false).disk], stateDirectory: "/other" };
    await expect(claimPlaces(env, refused, { ...record("JOINED"), destinationId: OTHER })).rejects.toThrow("not this");
  });

  test("is never among the files that a migration removes", () => {
    const [entry] = record("JOINED").disks;
    if (entry === undefined) throw new Error("no disk");
    const of = (disk: DestinationDisk) => filesOf({ disks: [disk], stateDirectory: "/state" }, entry);
    expect(of(FILE)).toEqual([IMAGE, `${IMAGE}.map`, `${IMAGE}.map.new`, `${IMAGE}.log`]);
    expect(of(device().disk)).toEqual([".head", ".map", ".map.new", ".log"].map((end) => `${DEVICE_RECORDS}${end}`));
  });
});
