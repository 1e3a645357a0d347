import { createServer, type Socket } from "node:net";
import { expect, onTestFinished, test } from "vitest";
import type { ByteStream } from "../../../src/env/links.ts";
import { dial } from "../../../src/os/dial.ts";
import { listenOn } from "../../../src/os/listen.ts";
import { loadNative } from "../../../src/os/native.ts";
import { adoptAccepted } from "../../../src/os/stream.ts";
import { tempDir } from "../../support/temp-dir.ts";
import { describeStreams } from "./stream-rules.ts";

describeStreams("with native calls where there are any");

/** As Linux has it by itself: nobody asked for more room. */
async function acceptedAsIs(path: string): Promise<ByteStream> {
  const server = createServer({ pauseOnConnect: true });
  const arrival = new Promise<Socket>((resolve) => server.on("connection", resolve));
  await new Promise<void>((resolve) => server.listen(path, resolve));
  const client = await dial({ kind: "unix", path });
  const stream = adoptAccepted(await arrival, "as it is");
  onTestFinished(() => {
    client.destroy();
    stream.destroy();
    server.close();
  });
  return stream;
}

test.skipIf(loadNative().state === "off")(
  "unix sockets take more than by themselves before their peer takes anything, at both ends",
  async () => {
    const folder = tempDir();
    const arrival = Promise.withResolvers<ByteStream>();
    const listener = await listenOn({ kind: "unix", path: folder.file("s") }, arrival.resolve);
    const dialled = await dial(listener.address);
    const accepted = await arrival.promise;
    onTestFinished(() => {
      dialled.destroy();
      accepted.destroy();
      listener.close();
      folder[Symbol.dispose]();
    });
    const plain = await acceptedAsIs(folder.file("p"));
    for (const stream of [plain, dialled, accepted]) stream.write(Buffer.alloc(2 ** 20, 1));
    expect(plain.pendingBytes).toBeGreaterThan(0);
    expect(dialled.pendingBytes).toBeLessThan(plain.pendingBytes);
    expect(accepted.pendingBytes).toBeLessThan(plain.pendingBytes);
  },
);
