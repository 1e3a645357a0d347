import { describe, expect, test } from "vitest";
import * as z from "zod";
import { destinationRecordPath, readDestination, writeDestination } from "../../../src/migrate/group-records.ts";
import { checkOwned, type OwnerRecord, ownerPath, readOwner, writeOwner } from "../../../src/migrate/owner-record.ts";
import { readRecord, removeRecord, writeRecord } from "../../../src/migrate/record-file.ts";
import { findStanding, writeOwners } from "../../../src/migrate/source-owners.ts";
import { FakeFiles } from "../../support/fake-files.ts";
import { world } from "../cor/support.ts";

const ID = "a1".repeat(16);
const OTHER = "b2".repeat(16);
const Simple = z.strictObject({ value: z.int() });
const PATH = "/vm/simple.record";

async function failure(work: Promise<unknown>): Promise<unknown> {
  return await work.then(
    () => undefined,
    (error: unknown) => error,
  );
}

async function contentsOf(files: FakeFiles, path: string): Promise<Buffer> {
  await using file = await files.open({ path, writable: false });
  const bytes = Buffer.alloc(await file.sizeBytes());
  await file.read(0, bytes);
  return bytes;
}

async function put(files: FakeFiles, path: string, bytes: Uint8Array): Promise<void> {
  if (await files.exists(path)) await files.unlink(path);
  await using file = await files.open({ path, writable: true, create: true });
  await file.write(0, bytes);
}

describe("a record", () => {
  test("is read back, replaced as a whole, and gone once it was removed", async () => {
    const files = new FakeFiles();
    expect(await readRecord({ files }, PATH, Simple)).toBeUndefined();
    await writeRecord({ files }, PATH, { value: 1 });
    await writeRecord({ files }, PATH, { value: 2 });
    expect(await readRecord({ files }, PATH, Simple)).toEqual({ value: 2 });
    await removeRecord({ files }, PATH);
    await removeRecord({ files }, PATH);
    expect(await readRecord({ files }, PATH, Simple)).toBeUndefined();
  });

  test("is written although an earlier attempt has left its half", async () => {
    const files = new FakeFiles();
    await put(files, `${PATH}.new`, Buffer.from("half of a rec"));
    await writeRecord({ files }, PATH, { value: 3 });
    expect(await readRecord({ files }, PATH, Simple)).toEqual({ value: 3 });
    expect(await files.exists(`${PATH}.new`)).toBe(false);
  });

  test("of the most disks with the longest paths is read back; a longer one is not begun", async () => {
    const files = new FakeFiles();
    const disks = Array.from({ length: 32 }, (_, index) => ({
      ...{
        name: `vd${index}`,
        image: `/${index}/`.padEnd(4096, "\u0001"),
        sizeBytes: 512,
        clusterBytes: 512,
        uuid: ID,
      },
    }));
    const record = { version: 1, state: "ACTIVE", destinationId: ID, migrationId: OTHER, term: 3, disks } as const;
    await writeDestination({ files }, "/state", record);
    expect(await readDestination({ files }, "/state")).toEqual(record);
    const tooLong = writeRecord({ files }, destinationRecordPath("/state"), { text: "x".repeat(1024 * 1024) });
    expect(await failure(tooLong)).toMatchObject({ code: "io" });
    expect(await readDestination({ files }, "/state")).toEqual(record);
  });

  test("of which any byte was changed, or any was lost, is refused", async () => {
    const files = new FakeFiles();
    await writeRecord({ files }, PATH, { value: 4 });
    const good = await contentsOf(files, PATH);
    for (let at = 0; at < good.length; at++) {
      const bad = Buffer.from(good);
      bad[at] = (bad[at] ?? 0) ^ 0x01;
      await put(files, PATH, bad);
      expect(await failure(readRecord({ files }, PATH, Simple)), `byte ${at}`).toMatchObject({ code: "bad-record" });
      await put(files, PATH, good.subarray(0, at));
      expect(await failure(readRecord({ files }, PATH, Simple)), `cut at ${at}`).toMatchObject({ code: "bad-record" });
    }
  });

  test("with keys that this version does not know is refused", async () => {
    const files = new FakeFiles();
    await writeRecord({ files }, PATH, { value: 5, more: 6 });
    expect(await failure(readRecord({ files }, PATH, Simple))).toMatchObject({ code: "bad-record" });
  });
});

function record(change: Partial<OwnerRecord>): OwnerRecord {
  return {
    ...{ version: 1, state: "OWNER", term: 3, writtenBy: ID, migrationId: ID, destinationId: OTHER },
    ...{ disk: "vda", group: ["vda"], stateDirectory: "/state" },
    ...change,
  };
}

describe("an image", () => {
  test("may be opened by anybody when there is no record of it, or one of its owner", async () => {
    const files = new FakeFiles();
    await checkOwned({ files }, "/vm/a.raw");
    await writeOwner({ files }, "/vm/a.raw", record({ state: "OWNER" }));
    await checkOwned({ files }, "/vm/a.raw");
  });

  test.each(["FENCED", "RELEASED", "PENDING", "ACTIVE"] as const)(
    "that is %s is refused, with a way out",
    async (state) => {
      const files = new FakeFiles();
      await writeOwner({ files }, "/vm/a.raw", record({ state }));
      const error = await failure(checkOwned({ files }, "/vm/a.raw"));
      expect(error).toMatchObject({ name: "MigrationError", code: "owned-elsewhere" });
      expect((error as { hint: string }).hint).toMatch(/blockferry/);
    },
  );

  test("whose record is damaged is refused", async () => {
    const files = new FakeFiles();
    await put(files, ownerPath("/vm/a.raw"), Buffer.from("OWNER, I swear\n"));
    expect(await failure(checkOwned({ files }, "/vm/a.raw"))).toMatchObject({ code: "bad-record" });
  });
});

describe("the records of a source's disks together", () => {
  const DISKS = [
    { name: "vda", image: "/vm/a.raw" },
    { name: "vdb", image: "/vm/b.raw" },
  ];
  const WRITER = { writtenBy: ID, migrationId: ID, stateDirectory: "/state" };
  const FENCED = record({ state: "FENCED", term: 4, group: ["vda", "vdb"] });

  async function standing(...records: (OwnerRecord | undefined)[]) {
    const files = new FakeFiles();
    const env = world(files);
    for (const [index, each] of records.entries()) {
      const { name, image } = DISKS[index] as (typeof DISKS)[number];
      if (each !== undefined) await writeOwner({ files }, image, { ...each, disk: name });
    }
    return { files, found: await findStanding(env, DISKS, WRITER) };
  }

  test("say that they are here when there are none, or none was given away", async () => {
    expect((await standing()).found).toEqual({ phase: "setup", term: 0, given: undefined });
    const { found } = await standing(record({ term: 6 }), undefined);
    expect(found).toEqual({ phase: "setup", term: 6, given: undefined });
  });

  test("say that they are given away when all of them are", async () => {
    const given = { migrationId: ID, destinationId: OTHER };
    expect((await standing(FENCED, FENCED)).found).toEqual({ phase: "granted", term: 4, given });
    const released = record({ ...FENCED, state: "RELEASED" });
    expect((await standing(released, FENCED)).found).toEqual({ phase: "released", term: 4, given });
  });

  test("make all of them this host's at a new term when only some were given away", async () => {
    for (const other of [undefined, record({ term: 3 }), record({ term: 5 })]) {
      const { files, found } = await standing(FENCED, other);
      expect(found).toEqual({ phase: "setup", term: Math.max(4, other?.term ?? 0) + 1, given: undefined });
      for (const { image } of DISKS) {
        expect(await readOwner({ files }, image)).toMatchObject({ state: "OWNER", term: found.term });
      }
    }
  });

  test("are refused when they are of another group, of two terms, or a destination's", async () => {
    const alone = record({ ...FENCED, group: ["vda"] });
    expect(await failure(standing(alone, undefined))).toMatchObject({ code: "owned-elsewhere" });
    expect(await failure(standing(FENCED, { ...FENCED, term: 2 }))).toMatchObject({ code: "bad-record" });
    expect(await failure(standing(record({ state: "ACTIVE" })))).toMatchObject({ code: "owned-elsewhere" });
  });

  test("are written for all disks, or the failure is told", async () => {
    const files = new FakeFiles();
    const env = world(files);
    const change = { ...WRITER, state: "FENCED", term: 9, destinationId: OTHER } as const;
    await writeOwners(env, DISKS, change);
    expect(await readOwner({ files }, "/vm/b.raw")).toMatchObject({ state: "FENCED", term: 9, group: ["vda", "vdb"] });
    await put(files, ownerPath("/vm/a.raw"), Buffer.from("x"));
    expect(await failure(findStanding(env, DISKS, WRITER))).toMatchObject({ code: "bad-record" });
  });
});
