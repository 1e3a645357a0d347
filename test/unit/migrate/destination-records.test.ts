/** What a destination finds written down when it starts, and what it makes of it. */
import { describe, expect, test } from "vitest";
import { findRecord } from "../../../src/migrate/destination-files.ts";
import type { DestinationDisk } from "../../../src/migrate/destination-options.ts";
import { type DestinationRecord, writeDestination } from "../../../src/migrate/group-records.ts";
import { type OwnerRecord, readOwner, writeOwner } from "../../../src/migrate/owner-record.ts";
import { FakeFiles } from "../../support/fake-files.ts";
import { world } from "../cor/support.ts";

const OURS = "a1".repeat(16);
const OTHER = "b2".repeat(16);
const IMAGE = "/vm/vda.raw";
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

async function start(known: DestinationRecord, found: OwnerRecord | undefined) {
  const files = new FakeFiles();
  const env = world(files);
  await writeDestination(env, "/state", known);
  files.add(IMAGE, 4096);
  if (found !== undefined) await writeOwner(env, IMAGE, found);
  const result = await findRecord(env, { disks: [FILE], stateDirectory: "/state" }).catch((error: unknown) => error);
  expect(await readOwner(env, IMAGE)).toEqual(found);
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
  });
});
