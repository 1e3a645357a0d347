/** Another disk under the source's name: nothing of it is read into the copy, and the operator is told. */
import { readFileSync } from "node:fs";
import { describe, expect } from "vitest";
import { bytesOf, missingOf, othersThan, placeIn, rangesDifference, untilDisk } from "../../support/clone-checks.ts";
import { runClone, startClone } from "../../support/clone-process.ts";
import { makeImage, pattern } from "../../support/patterns.ts";
import { nbdkitIn, type Peer } from "../../support/peers.ts";
import { type TempDir, tempDir } from "../../support/temp-dir.ts";
import { itWith } from "../../support/tools.ts";

const MiB = 2 ** 20;
const SIZE = 8 * MiB;
const RIGHT = 81;
const WRONG = 82;
const SAMPLE_BYTES = 4096;

const contents = (offset: number, length: number): Buffer => pattern(offset, length, RIGHT);

function serveDisk(folder: TempDir, salt: number, sizeBytes = SIZE): Promise<Peer> {
  const disk = folder.file(`disk${salt}`);
  makeImage(disk, sizeBytes, [{ offset: 0, length: sizeBytes, salt }]);
  return nbdkitIn(folder, "--filter=log", "-r", "file", disk, `logfile=${folder.file(`log${salt}`)}`);
}

/** Lengths of the reads that nbdkit has answered. */
function readsOf(folder: TempDir, salt: number): number[] {
  const log = readFileSync(folder.file(`log${salt}`), "latin1");
  return [...log.matchAll(/ Read id=\d+ offset=0x[0-9a-f]+ count=0x([0-9a-f]+)/g)].map(([, hex = ""]) =>
    parseInt(hex, 16),
  );
}

async function begun(folder: TempDir): Promise<ReturnType<typeof placeIn>> {
  const place = placeIn(folder, `nbd+unix:///?socket=${folder.file("nbd")}`);
  await using _ = await serveDisk(folder, RIGHT);
  await using clone = await startClone({ ...place, flags: ["--rate=2M"] });
  await untilDisk(clone, ({ localBytes }) => localBytes >= MiB);
  expect(await clone.stop(), clone.output).toBe(0);
  return place;
}

itWith(
  ["nbdkit"],
  "another disk that answers at a reconnect is refused, and a read that waits gets nothing of it",
  async () => {
    using folder = tempDir();
    const place = await begun(folder);
    const right = await serveDisk(folder, RIGHT);
    await using clone = await startClone({ ...place, flags: ["--rate=64K"] });
    await using client = await clone.open();
    await untilDisk(clone, (disk) => disk.source?.state === "connected");
    await right.kill();
    await untilDisk(clone, (disk) => disk.source?.state === "disconnected");
    const read = bytesOf(client, 6 * MiB, 4096).then(
      () => "answered",
      () => "failed",
    );
    await using _ = await serveDisk(folder, WRONG);
    const refused = await untilDisk(clone, (disk) => disk.source?.state === "refused");
    expect(refused.hydration?.state).toBe("stalled");
    expect(refused.source?.lastError).toContain("another disk");
    expect((await clone.status()).next).toContain("another disk answers there");
    expect(clone.output).toContain("another disk answers at the source");
    // It was looked at, and no more.
    expect(readsOf(folder, WRONG).length).toBeGreaterThan(0);
    expect(readsOf(folder, WRONG).filter((length) => length !== SAMPLE_BYTES)).toEqual([]);
    const missing = await missingOf(clone);
    expect(rangesDifference(place.image, missing, (__, length) => Buffer.alloc(length))).toBeUndefined();
    expect(rangesDifference(place.image, othersThan(missing, SIZE), contents)).toBeUndefined();
    await client.write(6 * MiB, contents(6 * MiB, 4096));
    client.drop("the guest has seen enough");
    expect(await read).toBe("failed");
  },
);

describe("another disk that answers at a restart", () => {
  itWith(["nbdkit"], "is refused while what is local is served, and the right one is gone on with", async () => {
    using folder = tempDir();
    const place = await begun(folder);
    {
      await using _ = await serveDisk(folder, WRONG);
      await using clone = await startClone(place);
      await untilDisk(clone, (disk) => disk.source?.state === "refused");
      await using client = await clone.open();
      expect((await bytesOf(client, 0, 4096)).equals(contents(0, 4096))).toBe(true);
      await client.write(7 * MiB, contents(7 * MiB, 4096));
      await client.flush();
      await client.close();
      expect(await clone.stop()).toBe(0);
    }
    await using _ = await serveDisk(folder, RIGHT);
    expect((await runClone({ ...place, flags: ["--exit-when-hydrated"] })).status).toBe(0);
    expect(rangesDifference(place.image, [{ offset: 0, length: SIZE }], contents)).toBeUndefined();
  });

  itWith(["nbdkit"], "ends --exit-when-hydrated with 69, whether its contents differ or its size", async () => {
    using folder = tempDir();
    const place = await begun(folder);
    for (const [salt, sizeBytes] of [
      [WRONG, SIZE],
      [RIGHT, SIZE + MiB],
    ] as const) {
      await using _ = await serveDisk(folder, salt, sizeBytes);
      const { status, stderr } = await runClone({ ...place, flags: ["--exit-when-hydrated"] });
      expect({ status, salt }).toEqual({ status: 69, salt });
      expect(stderr).toMatch(/cannot go on with .*copy\.raw/);
    }
    await using _ = await serveDisk(folder, RIGHT);
    expect((await runClone({ ...place, flags: ["--exit-when-hydrated"] })).status).toBe(0);
    expect(rangesDifference(place.image, [{ offset: 0, length: SIZE }], contents)).toBeUndefined();
  });
});
