/**
 * Every single bit of a reply's headers turned around, one at a time: whatever it makes of the reply, a read that is
 * reported as done has the right data in it.
 */
import { expect, test } from "vitest";
import { pattern } from "../../../support/patterns.ts";
import { outcomeOf, scripted } from "./scripted-client.ts";
import { type Chunk, cat, dataChunk, extended, holeChunk, simpleReply, structured } from "./scripted-server.ts";

const AT = 4096;
const EXPECTED = Buffer.concat([pattern(AT, 300), Buffer.alloc(300), pattern(AT + 600, 400)]);

/** Parts of a reply; those that are `true` are headers. */
type Parts = readonly (readonly [Buffer, boolean])[];

function partsOf(dialect: "simple" | "structured" | "extended", cookie: Buffer): Parts {
  if (dialect === "simple") {
    return [
      [simpleReply(cookie), true],
      [EXPECTED, false],
    ];
  }
  const chunk = (it: Chunk): Buffer => (dialect === "extended" ? extended(cookie, AT, it) : structured(cookie, it));
  const first = chunk(dataChunk(AT, EXPECTED.subarray(0, 300), false));
  const last = chunk(dataChunk(AT + 600, EXPECTED.subarray(600), true));
  return [
    [first.subarray(0, -300), true],
    [first.subarray(-300), false],
    [chunk(holeChunk(AT + 300, 300, false)), true],
    [last.subarray(0, -400), true],
    [last.subarray(-400), false],
  ];
}

test.each(["simple", "structured", "extended"] as const)("no flipped bit passes for data (%s)", async (dialect) => {
  const header = dialect === "extended" ? "extended" : "compact";
  const outcomes = { right: 0, failed: 0 };
  let bits = 1;
  for (let flip = -1; flip < bits; flip++) {
    const { client, server } = await scripted({ handshake: { dialect } });
    const into = Buffer.alloc(1000, 0xee);
    const outcome = outcomeOf(client.read(AT, into));
    const parts = partsOf(dialect, (await server.request(header)).cookie);
    let at = 0;
    for (const [bytes, isHeader] of parts) {
      if (!isHeader) continue;
      const index = flip - at;
      if (flip >= 0 && index >= 0 && index < bytes.length * 8) {
        bytes[index >> 3] = (bytes[index >> 3] as number) ^ (1 << (index & 7));
      }
      at += bytes.length * 8;
    }
    bits = at;
    server.send(cat(...parts.map(([bytes]) => bytes)));
    server.stream.end();
    const came = await outcome;
    if (came === "success") {
      expect(into.equals(EXPECTED)).toBe(true);
      outcomes.right++;
    } else {
      expect(came).toMatchObject({ name: "BlockError" });
      outcomes.failed++;
    }
  }
  // The reply as it was, and flags that have no meaning, are all that succeeds.
  expect(outcomes.right).toBe(dialect === "simple" ? 1 : 1 + 3 * 15);
  expect(outcomes.failed).toBe(bits - (outcomes.right - 1));
});
