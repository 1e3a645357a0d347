/** What `status` tells of migrations: a next step for every phase, and the runbook's rows for the same phases. */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import * as dest from "../../../src/cli/dest/status.ts";
import { migrationLines } from "../../../src/cli/migration/status-lines.ts";
import * as source from "../../../src/cli/source/status.ts";
import { MigrationStatus } from "../../../src/control/status.ts";
import type { LinkStatus } from "../../../src/link/link-options.ts";
import type { DestinationStatus } from "../../../src/migrate/destination-options.ts";
import {
  DESTINATION_EDGES,
  type DestinationPhase,
  SOURCE_EDGES,
  type SourcePhase,
} from "../../../src/migrate/phases.ts";
import type { SourceStatus } from "../../../src/migrate/source-options.ts";

const RUNBOOK = readFileSync(join(import.meta.dirname, "../../../docs/RUNBOOK.md"), "utf8");
const ID = "0".repeat(32);
const LINK: LinkStatus = {
  state: "connected",
  ...{ forMs: 1500, connections: 2, linkId: ID, peerId: ID, rttMs: 5, rttMinMs: 5 },
  ...{ sentBytes: 1, receivedBytes: 2, channels: 3, memoryBytes: 4, lastError: undefined },
};

function sourceIn(phase: SourcePhase, more: Partial<SourceStatus> = {}): SourceStatus {
  return {
    role: "source",
    owner: "source",
    ...{ phase, shown: phase, forMs: 2500, migrationId: ID, destinationId: undefined, term: 1 },
    ...{ destinationWrote: false, mode: undefined, link: LINK, lastError: undefined },
    disks: [{ name: "vda", sizeBytes: 8192, writesUnderWay: 0, writesHeld: 1, cleanBytes: 16_384 }],
    ...more,
  };
}

function destIn(phase: DestinationPhase, more: Partial<DestinationStatus> = {}): DestinationStatus {
  return {
    role: "destination",
    owner: "not here",
    mode: "hybrid",
    ...{ phase, shown: phase, forMs: 2500, migrationId: undefined, destinationId: ID, term: 0 },
    ...{ paused: false, link: undefined, lastError: undefined },
    disks: [
      {
        ...{ name: "vda", sizeBytes: 8192, pulledBytes: 4096, pulledAgainBytes: 0 },
        ...{ hydration: undefined, stalls: undefined, heat: undefined, guestWrote: false },
      },
    ],
    ...more,
  };
}

/** Phases that have a row in the table under `heading`. */
function rowsOf(heading: string): string[] {
  const [, section = ""] = RUNBOOK.split(`## ${heading}\n`);
  const [table = ""] = section.split("\n## ");
  return [...table.matchAll(/^\| `([a-z]+)` \|/gm)].map(([, phase = ""]) => phase).toSorted();
}

describe("the runbook", () => {
  test("has a row for every phase, and for no other", () => {
    expect(rowsOf("Phases of the source")).toEqual(Object.keys(SOURCE_EDGES).toSorted());
    expect(rowsOf("Phases of the destination")).toEqual(Object.keys(DESTINATION_EDGES).toSorted());
  });
});

describe("a source", () => {
  test("names a next step, but where nobody can do anything", () => {
    const phases = Object.keys(SOURCE_EDGES) as SourcePhase[];
    const silent = phases.filter((phase) => source.nextStep(sourceIn(phase), "blockferry dest …") === null);
    expect(silent).toEqual(["frozen", "granted"]);
    expect(source.nextStep(sourceIn("granted", { shown: "disconnected" }), "")).toContain("blockferry reclaim");
    expect(source.nextStep(sourceIn("setup"), "blockferry dest A:1 vda=a")).toContain("blockferry dest A:1 vda=a");
  });

  test("tells no more clean bytes than the disk has", () => {
    const disk = { name: "vda", image: "/a", records: "/a", format: "raw", device: undefined as never };
    expect(source.diskStatus(disk, sourceIn("ready"))).toMatchObject({
      cleanBytes: 8192,
      writesHeld: 1,
      state: "ready",
    });
  });

  test("says whose the disks are in words", () => {
    const migration = source.migrationStatus(sourceIn("granted", { owner: "nobody" }), "127.0.0.1:7000");
    expect(MigrationStatus.parse(migration)).toEqual(migration);
    const lines = migrationLines(migration).join("\n");
    expect(lines).toContain("nobody may write");
    expect(lines).toContain("127.0.0.1:7000  connected, 1 reconnects, round trip 5.0 ms");
    expect(source.statusLine(sourceIn("granted", { owner: "nobody" }))).toContain("the disks are nobody's");
  });

  test("tells how far the guest is on its way", () => {
    const guest = { phase: "moving-memory", sentBytes: 3 * 2 ** 20, restBytes: 2 ** 20, lastError: undefined } as const;
    const moving = source.migrationStatus(sourceIn("ready"), "127.0.0.1:7000", guest);
    expect(MigrationStatus.parse(moving)).toEqual(moving);
    expect(migrationLines(moving).at(-1)).toMatch(/^ {2}guest {6}moving-memory, 3.*MiB of memory sent, 1.*MiB left$/);
    const failed = dest.migrationStatus(destIn("ready"), "A:1", { phase: "failed", lastError: "no memory came" });
    expect(MigrationStatus.parse(failed)).toEqual(failed);
    expect(migrationLines(failed).at(-1)).toBe("  guest      failed: no memory came");
  });
});

describe("a destination", () => {
  test("names a next step, but where nobody can do anything", () => {
    const phases = Object.keys(DESTINATION_EDGES) as DestinationPhase[];
    expect(phases.filter((phase) => dest.nextStep(destIn(phase)) === null)).toEqual(["hydrated", "returning"]);
    expect(dest.nextStep(destIn("active", { paused: true }))).toBe("blockferry resume");
    expect(dest.nextStep(destIn("active", { shown: "disconnected" }))).toContain("blockferry missing");
  });

  test("shows what it has pulled as progress, while it waits and when the link is down", () => {
    expect(dest.progressOf(destIn("precopy"))).toMatchObject({ localBytes: 4096, sizeBytes: 8192, state: "hydrating" });
    expect(dest.progressOf(destIn("precopy", { shown: "disconnected" }))).toMatchObject({
      state: "stalled",
      stalledReason: "the link is down",
    });
    expect(dest.progressOf(destIn("setup", { disks: [] }))).toBeUndefined();
  });
});
