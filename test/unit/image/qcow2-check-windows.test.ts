/** A check of a qcow2 file that is larger than its counts may be: it comes to the same, window by window. */
import { expect } from "vitest";
import { NO_CHAOS } from "../../../src/env/chaos.ts";
import { checkTables } from "../../../src/image/qcow2/check.ts";
import { EntryRules } from "../../../src/image/qcow2/entry-rules.ts";
import { geometryOf, parseHeader } from "../../../src/image/qcow2/header.ts";
import { Refcounts } from "../../../src/image/qcow2/refcounts.ts";
import type { ReferenceCountsOptions } from "../../../src/image/qcow2/reference-counts.ts";
import { fixedRegions } from "../../../src/image/qcow2/session.ts";
import { Qcow2Tables } from "../../../src/image/qcow2/tables.ts";
import type { CheckReport } from "../../../src/image/tables/check-report.ts";
import { ImageFile } from "../../../src/image/tables/image-file.ts";
import { FakeFiles } from "../../support/fake-files.ts";
import { type HandMadeCluster, handMadeQcow2 } from "../../support/qcow2-bytes.ts";
import { itSeeded, type Prng } from "../../support/seed.ts";

const PATH = "/vm/a.qcow2";
const ENTRY_BYTES = 8;
const COPIED = 1n << 63n;
const COMPRESSED = 1n << 62n;

const CLUSTERS = new Map(
  Array.from({ length: 20 }, (_, index): [number, HandMadeCluster] => [
    index,
    index % 5 === 4 ? "zero" : index % 7 === 3 ? { compressed: 1 + index } : 1 + index,
  ]),
);
const made = handMadeQcow2({ sizeBytes: 64 * 4096, clusters: CLUSTERS });

/** L2 entries that point where others do, or nowhere; counts that are wrong. */
function damagedTables(rng: Prng): Buffer {
  const bytes = Buffer.from(made.bytes);
  const places = [...made.dataOffsets.values()].map(BigInt);
  for (let count = rng.integer(1, 6); count > 0; count--) {
    const place = rng.pick([...places, BigInt(bytes.length), BigInt(made.l1Offset), BigInt(made.l2Offset), 77n]);
    const entry = rng.pick([place, place | COPIED, place | 1n, place | COMPRESSED | (1n << 58n), 0n]);
    bytes.writeBigUInt64BE(entry, made.l2Offset + ENTRY_BYTES * rng.integer(0, 63));
  }
  // One place in many compressed clusters' use.
  const shared = COMPRESSED | rng.pick(places);
  for (let count = rng.pick([0, 0, 10, 40]); count > 0; count--) {
    bytes.writeBigUInt64BE(shared, made.l2Offset + ENTRY_BYTES * rng.integer(0, 63));
  }
  for (let count = rng.integer(0, 3); count > 0; count--) {
    const cluster = rng.integer(0, bytes.length / 4096 - 1);
    bytes.writeUInt16BE(rng.pick([0, 1, 2, 60_000]), made.refcountBlockOffset + 2 * cluster);
  }
  return bytes;
}

async function check(
  bytes: Buffer,
  repair: "none" | "leaks" | "all",
  counts: ReferenceCountsOptions,
): Promise<{ report: CheckReport; after: Buffer }> {
  const header = parseHeader(bytes.subarray(0, 112), bytes.length);
  if ("kind" in header) throw new Error(header.why);
  const files = new FakeFiles();
  files.add(PATH, bytes);
  const file = new ImageFile(await files.open({ path: PATH, writable: true }), bytes.length);
  const geometry = geometryOf(header);
  const rules = new EntryRules(geometry, fixedRegions(header), () => file.sizeBytes);
  const refcounts = await Refcounts.load({ file, geometry, rules, chaos: NO_CHAOS }, header);
  await Qcow2Tables.load({ file, geometry, rules, dirty: false }, refcounts.blocks);
  const report = await checkTables({ file, geometry, header, rules, refcounts, repair, shareDoubles: true, counts });
  const after = Buffer.alloc(file.sizeBytes);
  await file.read(0, after);
  return { report, after };
}

itSeeded("a check window by window comes to the same as one in a single window, and so does a repair", async (rng) => {
  let wrong = 0;
  for (let round = 0; round < 200; round++) {
    const bytes = damagedTables(rng);
    const repair = rng.pick(["none", "leaks", "all"] as const);
    const whole = await check(bytes, repair, {});
    const byWindow = await check(bytes, repair, { bytesMax: rng.integer(2, 9), largeMax: rng.integer(0, 2) });
    expect(byWindow.report).toEqual(whole.report);
    expect(byWindow.after.equals(whole.after)).toBe(true);
    if (whole.report.corruptions + whole.report.corruptionsFixed > 0) wrong += 1;
  }
  expect(wrong).toBeGreaterThan(50);
});
