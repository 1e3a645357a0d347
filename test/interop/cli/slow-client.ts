/**
 * A client that asks for a lot and takes nothing: it keeps a server that wants to stop from draining. Speaks just enough
 * NBD (EXPORT_NAME, then READs) for that.
 */
import { connect, type Socket } from "node:net";
import { waitFor } from "./harness.ts";

const HANDSHAKE_BYTES = 18;
const EXPORT_REPLY_BYTES = 10;
const CLIENT_FLAGS = 3; // fixed newstyle, no zeroes
const READ_BYTES = 1024 * 1024;

export async function startSlowClient(socketPath: string, reads: number): Promise<Socket> {
  const socket = connect(socketPath);
  let received = 0;
  socket.on("data", (bytes: Buffer) => {
    received += bytes.length;
  });
  socket.on("error", () => {});
  await waitFor(() => (received >= HANDSHAKE_BYTES ? true : undefined));
  const option = Buffer.alloc(4 + 16);
  option.writeUInt32BE(CLIENT_FLAGS, 0);
  option.write("IHAVEOPT", 4, "latin1");
  option.writeUInt32BE(1, 12); // NBD_OPT_EXPORT_NAME, with the empty name
  socket.write(option);
  await waitFor(() => (received >= HANDSHAKE_BYTES + EXPORT_REPLY_BYTES ? true : undefined));
  socket.pause();
  for (let cookie = 0; cookie < reads; cookie++) {
    const request = Buffer.alloc(28);
    request.writeUInt32BE(0x25609513, 0);
    request.writeUInt32BE(cookie, 12);
    request.writeUInt32BE(READ_BYTES, 24);
    socket.write(request);
  }
  await waitFor(() => (socket.writableLength === 0 ? true : undefined));
  return socket;
}
