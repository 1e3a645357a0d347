import { expect, test } from "vitest";
import { InFlight } from "../../../src/util/in-flight.ts";

test("closing resolves at once when nothing is under way, however often it is asked", async () => {
  const inFlight = new InFlight();
  await Promise.all([inFlight.close(), inFlight.close()]);
  await inFlight.close();
  expect(inFlight.closed).toBe(true);
});

test("closing waits for the last of those under way and lets no one else in", async () => {
  const inFlight = new InFlight();
  const seen: string[] = [];
  expect([inFlight.enter(), inFlight.enter()]).toEqual([true, true]);
  const closed = inFlight.close().then(() => seen.push("closed"));
  expect(inFlight.enter()).toBe(false);
  expect(inFlight.count).toBe(2);
  inFlight.leave();
  await Promise.resolve();
  await Promise.resolve();
  seen.push("one left");
  inFlight.leave();
  await closed;
  expect(seen).toEqual(["one left", "closed"]);
});
