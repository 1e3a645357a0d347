/** The one promise about handshakes that is tried against the clock on the wall; the others are in test/unit/nbd/server/lifecycle.test.ts. */
import { expect, test } from "vitest";
import { clientFlags, infoData, OPT, option } from "../../support/nbd-wire.ts";
import { makeImage } from "../../support/patterns.ts";
import { dialRaw } from "../../support/raw-client.ts";
import { startServe } from "../../support/serve-process.ts";
import { tempDir } from "../../support/temp-dir.ts";
import { beGoodClient, DISK_BYTES } from "./served-sockets.ts";

const SLACK = process.env["CI"] ? 4 : 1;

test("unfinished handshakes are closed after ten seconds by the clock on the wall, whatever they were waiting for", async () => {
  using dir = tempDir();
  makeImage(dir.file("disk.raw"), DISK_BYTES);
  await using serve = await startServe({ image: dir.file("disk.raw"), socket: dir.file("s") });
  const whole = Buffer.concat([clientFlags(), option(OPT.LIST), option(OPT.GO, infoData("")).subarray(0, 20)]);
  const startMs = performance.now();
  const clients = await Promise.all(
    [0, 3, 4, 9, 20, whole.length].map(async (bytes) => {
      const client = await dialRaw(serve.socket);
      client.send(whole.subarray(0, bytes));
      return client;
    }),
  );
  const [trickling] = await Promise.all([dialRaw(serve.socket), beGoodClient(await dialRaw(serve.socket))]);
  let sent = 0;
  const trickle = setInterval(() => trickling.send(whole.subarray(sent, ++sent)), 300);
  const ended = clients.map(async (client) => {
    await client.takeAll();
    return performance.now() - startMs;
  });
  await trickling.takeAll();
  clearInterval(trickle);
  for (const afterMs of [performance.now() - startMs, ...(await Promise.all(ended))]) {
    expect(afterMs).toBeGreaterThan(9500);
    expect(afterMs).toBeLessThan(10_000 + 1500 * SLACK);
  }
  await beGoodClient(await dialRaw(serve.socket));
});
