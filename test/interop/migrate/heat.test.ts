/** What the guest used at the source is fetched first at the destination, by the program as it ships. */
import { expect } from "vitest";
import { CMD } from "../../support/nbd-wire.ts";
import { imageDifference, type Region } from "../../support/patterns.ts";
import { dialRaw } from "../../support/raw-client.ts";
import { itSeeded } from "../../support/seed.ts";
import { tempDir } from "../../support/temp-dir.ts";
import { MiB } from "../serve/layout.ts";
import { linkOf, Rig } from "./rig.ts";

const SIZE = 48 * MiB;
const HOT_REGIONS = 3;
/** In the last quarter, where a linear order comes last. */
const FIRST_HOT_REGION = 36;
const LAST_HOT_REGION = 47;
/** All of that quarter: a linear order would have come to the hot regions with less than this missing. */
const COLD_LEFT_MIN = SIZE / 4;
const WAIT = { timeout: 60_000, interval: 20 };

itSeeded("what the guest has read and written at the source is brought over before the rest", async (rng) => {
  using folder = tempDir();
  const rig = new Rig(folder);
  const content: Region[] = [{ offset: 0, length: SIZE, salt: 1 }];
  rig.makeDisks(SIZE, content);
  const hot = new Set<number>();
  while (hot.size < HOT_REGIONS) hot.add(rng.integer(FIRST_HOT_REGION, LAST_HOT_REGION));
  await using source = await rig.source();
  const guest = await dialRaw(rig.socket("a"));
  await guest.go({ exportName: "vda" });
  for (const region of hot) await guest.call({ command: CMD.READ, offset: region * MiB + 65_536, length: 4096 });
  guest.end();
  await using dest = await rig.dest(await linkOf(source), { flags: ["--mode", "postcopy", "--rate", "1M"] });
  await dest.reached("ready");
  await source.switchover();

  await expect.poll(async () => (await dest.status()).disks[0]?.heat?.regions, WAIT).toBe(HOT_REGIONS);
  await expect.poll(async () => (await dest.status()).disks[0]?.heat?.taken, WAIT).toBe(HOT_REGIONS);
  const [disk] = (await dest.status()).disks;
  expect(disk?.heat).toEqual({ regionBytes: MiB, regions: HOT_REGIONS, taken: HOT_REGIONS });
  expect(disk?.missingBytes).toBeGreaterThan(COLD_LEFT_MIN);

  await dest.call("set-speed", { bytesPerSecond: null });
  await dest.reached("complete");
  expect(await dest.stop()).toBe(0);
  expect(imageDifference(rig.image("b"), SIZE, content)).toBeUndefined();
});
