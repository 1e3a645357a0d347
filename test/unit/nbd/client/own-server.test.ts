/** Our client and our server with one another: over streams that cut anywhere, in every dialect. */
import { expect } from "vitest";
import type { BlockDevice } from "../../../../src/block/device.ts";
import { MemoryDevice } from "../../../../src/block/memory.ts";
import type { NbdClient } from "../../../../src/nbd/client/client.ts";
import { openNbd } from "../../../../src/nbd/client/connect.ts";
import type { Dialect } from "../../../../src/nbd/client/negotiate.ts";
import { NbdServer } from "../../../../src/nbd/server/server.ts";
import { realClock } from "../../../../src/os/clock.ts";
import { describeConformance } from "../../../support/conformance.ts";
import { pattern } from "../../../support/patterns.ts";
import { itSeeded, Prng, runSeed } from "../../../support/seed.ts";
import { seeded, streamPair } from "../../../support/stream-pair.ts";

const quiet = { debug: () => {}, info: () => {}, warn: () => {}, error: () => {} };

async function connected(device: BlockDevice, dialectMax: Dialect, rng: Prng): Promise<NbdClient> {
  const server = new NbdServer({ clock: realClock, exports: [{ name: "disk", device, readOnly: false }], log: quiet });
  const pair = streamPair({ clientCut: seeded(rng), serverCut: seeded(rng) });
  server.accept(pair.server);
  return await openNbd(pair.client, realClock, { exportName: "disk", dialectMax });
}

for (const dialect of ["simple", "structured", "extended"] as const) {
  const rng = new Prng(runSeed(), dialect);
  describeConformance(`our client of our server in the ${dialect} dialect`, {
    make: async (wanted) => await connected(new MemoryDevice(wanted), dialect, rng),
  });
}

itSeeded("our client and our server agree on the newest dialect that the client wants", async (rng) => {
  for (const dialect of ["simple", "structured", "extended"] as const) {
    await using client = await connected(new MemoryDevice({ sizeBytes: 1 << 20 }), dialect, rng);
    expect(client.dialect).toBe(dialect);
    await client.write(5, pattern(5, 100_000));
    const into = Buffer.alloc(100_000);
    await client.read(5, into);
    expect(into.equals(pattern(5, 100_000))).toBe(true);
  }
});
