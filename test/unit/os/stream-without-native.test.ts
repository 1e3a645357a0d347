import { afterAll, expect, test, vi } from "vitest";

// Looked at when the first stream of a process is made: with modules of its own this file is first.
const before = process.env["BLOCKFERRY_NO_NATIVE"];
process.env["BLOCKFERRY_NO_NATIVE"] = "1";
afterAll(() => {
  if (before === undefined) delete process.env["BLOCKFERRY_NO_NATIVE"];
  else process.env["BLOCKFERRY_NO_NATIVE"] = before;
});
vi.resetModules();
const { loadNative } = await import("../../../src/os/native.ts");
const { NowaitSender } = await import("../../../src/os/nowait-sender.ts");
const { describeStreams } = await import("./stream-rules.ts");

test("there are no native calls here", () => {
  expect(loadNative().state).toBe("off");
  expect(NowaitSender.create()).toBeUndefined();
});

describeStreams("without native calls");
