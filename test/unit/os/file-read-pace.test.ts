import { describe, expect, it } from "vitest";
import { ReadPace } from "../../../src/os/file-read-pace.ts";

const LONG = 64 * 1024;

function pace(): { clock: { ms: number }; read: (length: number, tookMs: number) => boolean } {
  const clock = { ms: 0 };
  const subject = new ReadPace(() => clock.ms);
  const read = (length: number, tookMs: number): boolean => {
    if (!subject.begins(length)) return false;
    clock.ms += tookMs;
    subject.ended(length);
    return true;
  };
  return { clock, read };
}

describe("the pace of long reads on the event loop", () => {
  it("lets quick ones follow each other", () => {
    const { read } = pace();
    expect([read(LONG, 0.05), read(LONG, 0.05), read(LONG, 0.05)]).toEqual([true, true, true]);
  });

  it("sends those after a slow one elsewhere for two hundred times as long, and not longer", () => {
    const { clock, read } = pace();
    expect(read(LONG, 1)).toBe(true);
    clock.ms += 199;
    expect(read(LONG, 0.05)).toBe(false);
    clock.ms += 1;
    expect(read(LONG, 0.05)).toBe(true);
  });

  it("never holds short ones up", () => {
    const { read } = pace();
    read(LONG, 5);
    expect([read(LONG - 1, 5), read(4096, 5)]).toEqual([true, true]);
  });
});
