import { afterAll, beforeAll } from "vitest";
import { describeStreams } from "./stream-rules.ts";

// Looked at when the first stream is made.
let before: string | undefined;
beforeAll(() => {
  before = process.env["BLOCKFERRY_NO_NATIVE"];
  process.env["BLOCKFERRY_NO_NATIVE"] = "1";
});
afterAll(() => {
  if (before === undefined) delete process.env["BLOCKFERRY_NO_NATIVE"];
  else process.env["BLOCKFERRY_NO_NATIVE"] = before;
});

describeStreams("without native calls");
