/**
 * A source behind a line: an NBD server, or a program that sends the disk's bytes and nothing else, reached through
 * `tools/line` at a round-trip time and a bandwidth. Started anew for each sample, in a folder of its own.
 */
import { once } from "node:events";
import { createReadStream } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import { type AddressInfo, createServer } from "node:net";
import { join } from "node:path";
import { pipeline } from "node:stream/promises";
import { type LineProcess, startLine } from "../../tools/line/client.ts";
import type { Stats } from "../../tools/line/messages.ts";
import type { Listen } from "../lib/nbd-probe.ts";
import { NBDKIT, type NbdPeer, serveTcp } from "../lib/peers.ts";
import { settle, touchMemory, warm } from "../lib/prepare.ts";
import type { SourceDisk } from "./stream-copy.ts";

/** 1 Gb/s each way. */
export const LINE_BITS_PER_SECOND = 1e9;
export const LINE_BYTES_PER_SECOND = LINE_BITS_PER_SECOND / 8;
/** Pages besides the copy's own: those of heaps and socket buffers. */
const MEMORY_FACTOR = 1.25;
const SEND_PIECE_BYTES = 1 << 20;

export interface Scene {
  readonly line: LineProcess;
  /** Of the line. */
  readonly port: number;
  readonly uri: string;
  /** Empty, for whatever the sample needs. */
  readonly folder: string;
  readonly disk: SourceDisk;
}

export interface SceneOptions {
  readonly disk: SourceDisk;
  readonly rttMs: number;
  readonly source: SourceKind;
}

/**
 * What stands behind the line: an NBD server of the file; a program that sends the file's bytes and nothing else; an NBD
 * server of bytes that nobody has to store, each 8 of which hold their own offset, big-endian (nbdkit's `pattern`).
 */
export type SourceKind = "nbd" | "bytes" | "pattern";

interface Source extends AsyncDisposable {
  readonly port: number;
}

/** Prepares memory and page cache, runs `body`, and takes everything away again. */
export async function withScene<T>(options: SceneOptions, body: (scene: Scene) => Promise<T>): Promise<T> {
  const { disk, rttMs, source: kind } = options;
  const folder = await mkdtemp(join(disk.directory, "wan-"));
  try {
    await settle(folder);
    for (const range of disk.data) await warm(disk.path, range);
    await using source: Source = await startSource(kind, disk, folder);
    const target = { kind: "tcp", host: "127.0.0.1", port: source.port } as const;
    await using line = await startLine({ target, rttMs, bitsPerSecond: LINE_BITS_PER_SECOND });
    const { address } = line;
    if (address.kind !== "tcp") throw new Error("the line listens on a port");
    await touchMemory(folder, disk.dataBytes * MEMORY_FACTOR);
    return await body({ line, folder, disk, port: address.port, uri: `nbd://127.0.0.1:${address.port}/` });
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

async function startSource(kind: SourceKind, disk: SourceDisk, directory: string): Promise<Source> {
  if (kind === "bytes") return await sendBytes(disk.path);
  const peer = kind === "pattern" ? patternServer(disk.sizeBytes) : NBDKIT;
  return await serveTcp(peer, { image: disk.path, readOnly: true, directory });
}

function patternServer(sizeBytes: number): NbdPeer {
  const listenTo = (listen: Listen): string[] =>
    typeof listen === "string" ? ["--unix", listen] : ["--ipaddr=127.0.0.1", `--port=${listen}`];
  return {
    ...NBDKIT,
    command: (_, listen) => ["nbdkit", "--foreground", ...listenTo(listen), "--readonly", "pattern", `${sizeBytes}`],
  };
}

/** The offset of the first wrong 8 bytes of what a "pattern" source holds, or −1. */
export function patternMismatch(bytes: Buffer, offset: number): number {
  for (let at = 0; at < bytes.length; at += 8) {
    const wanted = offset + at;
    const good =
      bytes.readUInt32BE(at) === Math.floor(wanted / 2 ** 32) && bytes.readUInt32BE(at + 4) === wanted % 2 ** 32;
    if (!good) return wanted;
  }
  return -1;
}

/** Sends the file to whoever connects, and ends. */
async function sendBytes(path: string): Promise<Source> {
  const server = createServer((socket) => {
    const file = createReadStream(path, { highWaterMark: SEND_PIECE_BYTES });
    // A receiver that leaves early fails by itself.
    pipeline(file, socket).catch(() => undefined);
  }).listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address() as AddressInfo;
  return {
    port,
    [Symbol.asyncDispose]: async () => {
      server.close();
      await once(server, "close");
    },
  };
}

/** By how much the line itself was late, there and back, at the 99th percentile: no fault of whoever is measured. */
export function latenessMs({ up, down }: Stats): number {
  return up.latenessMs.p99 + down.latenessMs.p99;
}
