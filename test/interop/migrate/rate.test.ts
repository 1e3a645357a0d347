/** `source --rate`: what a destination may pull in the background, whatever its own operator says. */
import { expect } from "vitest";
import { connectNbd } from "../../../src/nbd/client/connect.ts";
import { realClock } from "../../../src/os/clock.ts";
import { realLinks } from "../../../src/os/dial.ts";
import { imageDifference, type Region } from "../../support/patterns.ts";
import { itSeeded } from "../../support/seed.ts";
import { tempDir } from "../../support/temp-dir.ts";
import { MiB } from "../serve/layout.ts";
import { linkOf, type MigrationProcess, Rig } from "./rig.ts";

const SIZE = 8 * MiB;
/** The disk would take hours. */
const RATE = 1024;
const WAIT = { timeout: 60_000, interval: 20 };

function limitOf(dest: MigrationProcess): Promise<number | null | undefined> {
  return dest.status().then(({ disks: [disk] }) => disk?.hydration?.rateLimitBytesPerSecond);
}

itSeeded("the source limits what is pulled in the background, and not what the guest asks for", async (rng) => {
  using folder = tempDir();
  const rig = new Rig(folder);
  const content: Region[] = [{ offset: 0, length: SIZE, salt: rng.integer(1, 255) }];
  rig.makeDisks(SIZE, content);
  const slow = await rig.source({ flags: ["--rate", String(RATE)] });
  const link = await linkOf(slow);
  await using dest = await rig.dest(link, { flags: ["--rate", "100M"] });
  await dest.reached("ready");
  await slow.switchover();
  expect(await limitOf(dest)).toBe(RATE);
  expect((await dest.call("set-speed", { bytesPerSecond: RATE / 2 })).bytesPerSecond).toBe(RATE / 2);
  expect(await limitOf(dest)).toBe(RATE / 2);
  await dest.call("set-speed", { bytesPerSecond: null });
  expect(await limitOf(dest)).toBe(RATE);

  const address = { kind: "unix", path: rig.socket("b") } as const;
  const guest = await connectNbd({ clock: realClock, links: realLinks }, { address, exportName: "vda" });
  for (let offset = 0; offset < SIZE / 2; offset += MiB) await guest.read(offset, Buffer.alloc(MiB));
  await guest.close();
  // Readers do not wait until it is stored.
  const local = (): Promise<number | undefined> => dest.status().then(({ disks: [disk] }) => disk?.localBytes);
  await expect.poll(local, WAIT).toBeGreaterThanOrEqual(SIZE / 2);

  // Another life of the source has another opinion.
  await slow.kill();
  await using fast = await rig.source({ link });
  await expect.poll(() => limitOf(dest), WAIT).toBeNull();
  await fast.reached("complete");
  expect(await dest.stop()).toBe(0);
  expect(imageDifference(rig.image("b"), SIZE, content)).toBeUndefined();
});
