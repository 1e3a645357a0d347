import { describe, expect, test } from "vitest";
import type { BlockDevice } from "../../../src/block/device.ts";
import { BlockError } from "../../../src/block/error.ts";
import { MemoryDevice } from "../../../src/block/memory.ts";
import { NO_CHAOS } from "../../../src/env/chaos.ts";
import { ExportDevice } from "../../../src/migrate/export-device.ts";
import { GrainSet } from "../../../src/migrate/grain-set.ts";
import { SessionDevice } from "../../../src/migrate/session-device.ts";
import { SourceDevice } from "../../../src/migrate/source-device.ts";
import { WriteGate } from "../../../src/migrate/write-gate.ts";
import { HeatMap } from "../../../src/stream/heat.ts";
import { pattern } from "../../support/patterns.ts";

const GRAIN = 4096;
const SIZE = 8 * GRAIN;
const ONE = Buffer.alloc(512, 0x11);

function sourceOf() {
  const device = new MemoryDevice({ sizeBytes: SIZE, content: pattern(0, SIZE, 1) });
  const clean = new GrainSet(SIZE, GRAIN);
  const gate = new WriteGate(NO_CHAOS);
  const heat = new HeatMap({ nowMs: () => 0 }, { regionBytes: GRAIN });
  const guest = new SourceDevice({ device, clean, heat, gate });
  return { device, clean, gate, heat, guest };
}

async function settled(work: Promise<unknown>): Promise<string> {
  let state = "waiting";
  void work.then(
    () => (state = "done"),
    () => (state = "failed"),
  );
  for (let turn = 0; turn < 10; turn++) await Promise.resolve();
  return state;
}

describe("a disk on the source", () => {
  test("has a grain out of the clean set before the change is answered, however it was changed", async () => {
    const { clean, guest } = sourceOf();
    const changes: (() => unknown)[] = [
      () => guest.write(0, ONE),
      () => guest.writeNow(0, ONE),
      () => guest.writeZeroes(0, 512),
      () => guest.discard(0, 512),
    ];
    for (const change of changes) {
      clean.add(0, 7);
      await change();
      expect([clean.has(0), clean.count]).toEqual([false, 7]);
    }
  });

  test("has it out of the clean set when the change has failed, too", async () => {
    const { device, clean, gate, heat } = sourceOf();
    const broken: BlockDevice = Object.assign(Object.create(device) as BlockDevice, {
      write: () => Promise.reject(new BlockError("io", "half of it")),
    });
    const guest = new SourceDevice({ device: broken, clean, heat, gate });
    clean.add(0, 7);
    await expect(guest.write(0, ONE)).rejects.toThrow("half of it");
    expect(clean.has(0)).toBe(false);
    expect(gate.underWay).toBe(0);
  });

  test("answers reads and flushes while changes are held, and lets those go on afterwards", async () => {
    const { guest, gate, device } = sourceOf();
    gate.hold();
    const held = guest.write(0, ONE);
    expect(guest.writeNow(512, ONE)).toBe(-1);
    await guest.flush();
    await guest.read(0, Buffer.alloc(512));
    expect([await settled(held), gate.held]).toEqual(["waiting", 1]);
    gate.open();
    await held;
    const into = Buffer.alloc(512);
    await device.read(0, into);
    expect([into.equals(ONE), gate.held]).toEqual([true, 0]);
  });

  test("fails what is held, and all that comes, once it is another host's", async () => {
    const { guest, gate } = sourceOf();
    gate.hold();
    const held = guest.write(0, ONE);
    gate.refuse(new BlockError("io", "gone"));
    await expect(held).rejects.toThrow("gone");
    await expect(guest.discard(0, 512)).rejects.toThrow("gone");
    await guest.flush();
  });

  test("tells which regions its guest has used", async () => {
    const { guest, heat } = sourceOf();
    await guest.read(2 * GRAIN, Buffer.alloc(512));
    await guest.write(5 * GRAIN, ONE);
    await expect(guest.read(SIZE, ONE)).rejects.toThrow();
    expect(heat.snapshot().regions.map(([region]) => region)).toEqual([2, 5]);
  });
});

describe("a session of the destination", () => {
  test("marks what it reads and asks about before it does, if it pulls, and nothing if it does not", async () => {
    const { device, clean } = sourceOf();
    const marked: number[] = [];
    const watched: BlockDevice = Object.assign(Object.create(device) as BlockDevice, {
      read: async () => void marked.push(clean.count),
      extents: async () => {
        marked.push(clean.count);
        return [{ length: GRAIN, hole: true, zero: true }];
      },
    });
    const pull = new SessionDevice({ device: watched, clean, chaos: NO_CHAOS });
    await pull.read(0, Buffer.alloc(2 * GRAIN));
    await pull.extents(4 * GRAIN, 3 * GRAIN, 8);
    expect(marked).toEqual([2, 5]);
    const read = new SessionDevice({ device, chaos: NO_CHAOS });
    await read.read(0, Buffer.alloc(SIZE));
    expect(clean.count).toBe(5);
    await expect(pull.write()).rejects.toThrow("only reads");
  });

  test("that was revoked marks and reads nothing more", async () => {
    const { device, clean } = sourceOf();
    const pull = new SessionDevice({ device, clean, chaos: NO_CHAOS });
    pull.revoke();
    await expect(pull.read(0, Buffer.alloc(GRAIN))).rejects.toThrow("over");
    await expect(pull.extents(0, GRAIN, 1)).rejects.toThrow("over");
    expect([pull.readNow(0, Buffer.alloc(GRAIN)), clean.count]).toEqual([-1, 0]);
  });
});

function exportOf(early: boolean) {
  const remote = new MemoryDevice({ sizeBytes: SIZE, content: pattern(0, SIZE, 1) });
  const local = new MemoryDevice({ sizeBytes: SIZE, content: pattern(0, SIZE, 2) });
  const notes: PromiseWithResolvers<void>[] = [];
  const guest = new ExportDevice({
    ...{ sizeBytes: SIZE, capabilities: local.capabilities, early: early ? remote : undefined },
    noteWrite: () => {
      const note = Promise.withResolvers<void>();
      notes.push(note);
      return note.promise;
    },
  });
  const live = Object.assign(Object.create(local) as MemoryDevice, {
    isLocal: () => true,
    read: (offset: number, into: Uint8Array) => local.read(offset, into),
    write: (offset: number, from: Uint8Array) => local.write(offset, from),
    writeNow: (offset: number, from: Uint8Array) => local.writeNow(offset, from),
  });
  return { guest, live, local, notes };
}

describe("a disk on the destination", () => {
  test("has its size and may be written to, by its looks, before it is there; early reads see the source's disk", async () => {
    const { guest } = exportOf(true);
    expect([guest.sizeBytes, guest.capabilities.readOnly]).toEqual([SIZE, false]);
    const into = Buffer.alloc(512);
    await guest.read(512, into);
    expect(into.equals(Buffer.from(pattern(512, 512, 1)))).toBe(true);
    expect(guest.readNow(0, into)).toBe(-1);
    await guest.flush();
    for (const refused of [guest.write(0, ONE), guest.writeZeroes(0, 512), guest.discard(0, 512)]) {
      await expect(refused).rejects.toMatchObject({ code: "permission" });
    }
    expect(guest.writeNow(0, ONE)).toBe(-1);
    await expect(exportOf(false).guest.read(0, into)).rejects.toMatchObject({ code: "io" });
  });

  test("lets a first change through once it is noted that there is one, and refuses them again once it is shut", async () => {
    const { guest, live, local, notes } = exportOf(true);
    guest.activate(live, false);
    expect([guest.wrote, guest.writeNow(0, ONE), notes.length]).toEqual([false, -1, 0]);
    const writing = guest.write(0, ONE);
    // It counts from this turn on, and is not done before the note is.
    expect([guest.wrote, notes.length, guest.writeNow(0, ONE)]).toEqual([true, 1, -1]);
    expect(await settled(writing)).toBe("waiting");
    const into = Buffer.alloc(512);
    await local.read(0, into);
    expect(into.equals(ONE)).toBe(false);
    notes[0]?.resolve();
    await writing;
    await guest.write(0, ONE);
    expect([guest.writeNow(512, ONE), guest.wrote, notes.length]).toEqual([512, true, 1]);
    guest.shut();
    await expect(guest.write(0, ONE)).rejects.toMatchObject({ code: "permission" });
  });

  test("does not count a change that could not be noted, and lets none through that waited while it was shut", async () => {
    const { guest, live, notes } = exportOf(true);
    guest.activate(live, false);
    const failing = guest.write(0, ONE);
    notes[0]?.reject(new BlockError("no-space", "full"));
    await expect(failing).rejects.toThrow("full");
    expect(guest.wrote).toBe(false);
    const late = guest.writeZeroes(0, 512);
    guest.shut();
    notes[1]?.resolve();
    await expect(late).rejects.toMatchObject({ code: "permission" });
  });

  test("answers from what is here when the source was let go meanwhile", async () => {
    const { guest, live, local } = exportOf(true);
    let first = true;
    const late = Object.assign(Object.create(live) as typeof live, {
      read: async (offset: number, into: Uint8Array) => {
        if (first) {
          first = false;
          throw new BlockError("shutting-down", "the source was closed");
        }
        await local.read(offset, into);
      },
    });
    guest.activate(late, false);
    const into = Buffer.alloc(512);
    await guest.read(0, into);
    expect(into.equals(Buffer.from(pattern(0, 512, 2)))).toBe(true);
    const missing = Object.assign(Object.create(late) as typeof late, { isLocal: () => false });
    first = true;
    guest.activate(missing, false);
    await expect(guest.read(0, into)).rejects.toMatchObject({ code: "shutting-down" });
  });
});
