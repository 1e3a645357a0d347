/** A source that answers what nobody asked: the link is broken off, not one byte of it is kept, and it is asked again. */
import { expect, test } from "vitest";
import {
  bytesOf,
  diskOf,
  missingOf,
  othersThan,
  placeIn,
  rangesDifference,
  untilDisk,
} from "../../support/clone-checks.ts";
import { startClone } from "../../support/clone-process.ts";
import { pattern } from "../../support/patterns.ts";
import { counts } from "../../support/seed.ts";
import { tempDir } from "../../support/temp-dir.ts";
import { HostileSource, LIES } from "./hostile-source.ts";

const MiB = 2 ** 20;
const SIZE = 12 * MiB;
const SALT = 71;
const contents = (offset: number, length: number): Buffer => pattern(offset, length, SALT);

test("a source that answers a read with something else is hung up on, and nothing of it is written", async () => {
  using folder = tempDir();
  await using source = await HostileSource.listen(folder.file("nbd"), SIZE, SALT);
  const place = placeIn(folder, `nbd+unix:///?socket=${folder.file("nbd")}`);
  await using clone = await startClone({ ...place, flags: ["--rate=64K"] });
  await clone.call("pause", {});
  await using client = await clone.open();
  let at = MiB;
  for (const [what, { lie, noticedAs }] of Object.entries(LIES).slice(0, counts({ local: 4, ci: 99 }))) {
    at += MiB;
    const before = (await diskOf(clone)).source?.reconnects ?? 0;
    source.lies = 0;
    source.lie = lie;
    const read = bytesOf(client, at, 8192);
    const { source: session } = await untilDisk(clone, () => source.lies >= 2);
    expect(session?.reconnects, what).toBeGreaterThan(before);
    expect(session?.lastError, what).toContain("the server broke the protocol: ");
    expect(session?.lastError, what).toContain(noticedAs);
    const missing = await missingOf(clone);
    expect(
      missing.some(({ offset, length }) => offset <= at && offset + length >= at + 8192),
      what,
    ).toBe(true);
    // What is missing was never written to.
    expect(
      rangesDifference(place.image, missing, (_, length) => Buffer.alloc(length)),
      what,
    ).toBeUndefined();
    expect(rangesDifference(place.image, othersThan(missing, SIZE), contents), what).toBeUndefined();
    source.lie = undefined;
    expect((await read).equals(contents(at, 8192)), what).toBe(true);
  }
  await clone.call("set-speed", { bytesPerSecond: null });
  await clone.call("resume", {});
  await clone.hydrated();
  await client.close();
  expect(await clone.stop()).toBe(0);
  expect(rangesDifference(place.image, [{ offset: 0, length: SIZE }], contents)).toBeUndefined();
});
