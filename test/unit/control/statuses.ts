/** A status as a clone in the middle of its work gives it. */
import type { Status } from "../../../src/control/status.ts";

const GIB = 2 ** 30;

export function cloneStatus(): Status {
  return {
    program: "blockferry",
    version: "0.1.0",
    pid: 4711,
    role: "clone",
    state: "running",
    startedAt: "2026-01-02T03:04:05.000Z",
    uptimeSeconds: 75.5,
    reached: ["listening"],
    disks: [
      {
        name: "vda",
        image: "/vm/disk.raw",
        format: "raw",
        readOnly: false,
        sizeBytes: 40 * GIB,
        clusterBytes: 4096,
        localBytes: 12.4 * GIB - ((12.4 * GIB) % 4096),
        missingBytes: 40 * GIB - (12.4 * GIB - ((12.4 * GIB) % 4096)),
        state: "running",
        hydration: {
          state: "hydrating",
          rateBytesPerSecond: 182 * 2 ** 20,
          rateLimitBytesPerSecond: 200 * 2 ** 20,
          etaSeconds: 151,
          elapsedSeconds: 70,
          stalledReason: null,
          fetchedBytes: 10 * GIB,
          zeroBytes: 2 * GIB,
          errors: [{ offset: 4096, length: 8192, code: "EIO", count: 3 }],
          errorsTotal: 2,
        },
        source: {
          uri: "nbd://storage/vda",
          state: "connected",
          since: "2026-01-02T03:04:06.000Z",
          reconnects: 2,
          lastError: null,
        },
      },
    ],
    clients: 1,
    uris: ["nbd+unix:///vda?socket=/run/vda.sock"],
    next: "blockferry wait --for=hydrated",
  };
}
