/** Clients that copy an export into a file: the established ones when they are installed, and our own. */
import { spawn } from "node:child_process";
import { accessSync, constants } from "node:fs";
import { open } from "node:fs/promises";
import { delimiter, join } from "node:path";
import type { Readable } from "node:stream";
import type { Env } from "../env/env.ts";
import { connectNbd } from "../nbd/client/connect.ts";
import { parseNbdUri } from "../nbd/uri.ts";
import type { ClientName } from "./client-names.ts";
import { DemoFailure } from "./failure.ts";

/** Told how much is done, from 0 to 1. */
export type OnProgress = (done: number) => void;

export interface CopyClient {
  readonly name: ClientName;
  copy(uri: string, to: string, onProgress: OnProgress): Promise<void>;
}

/** The client called `wanted`, or the first of the established ones that is here, else our own. */
export function chooseClient(env: Env, wanted?: ClientName): CopyClient {
  if (wanted === "nbdcopy" || (wanted === undefined && onPath("nbdcopy"))) return nbdcopy;
  if (wanted === "qemu-img" || (wanted === undefined && onPath("qemu-img"))) return qemuImg;
  return { name: "blockferry", copy: (uri, to, onProgress) => copyOurselves(env, { uri, to, onProgress }) };
}

const PROGRESS_FD = 3;

const nbdcopy: CopyClient = {
  name: "nbdcopy",
  copy: (uri, to, onProgress) =>
    runClient(["nbdcopy", `--progress=${PROGRESS_FD}`, uri, to], /(\d+)\/100/g, onProgress),
};

const qemuImg: CopyClient = {
  name: "qemu-img",
  copy: (uri, to, onProgress) =>
    runClient(["qemu-img", "convert", "-p", "-f", "raw", "-O", "raw", uri, to], /\(([\d.]+)\/100%\)/g, onProgress),
};

/** Runs a program that prints its progress in percent, to stdout or to `PROGRESS_FD`. */
async function runClient(command: readonly string[], percent: RegExp, onProgress: OnProgress): Promise<void> {
  const [program = "", ...args] = command;
  const child = spawn(program, args, { stdio: ["ignore", "pipe", "pipe", "pipe"] });
  let complaints = "";
  child.stderr?.on("data", (bytes: Buffer) => {
    complaints += bytes.toString();
  });
  for (const stream of [child.stdout, child.stdio[PROGRESS_FD] as Readable]) {
    stream?.on("data", (bytes: Buffer) => {
      const last = [...bytes.toString().matchAll(percent)].at(-1)?.[1];
      if (last !== undefined) onProgress(Number(last) / 100);
    });
  }
  const code = await new Promise<number | string | null>((resolve) => {
    child.once("error", (error) => resolve(error.message));
    child.once("close", resolve);
  });
  if (code === 0) return;
  const why = complaints.trim().split("\n").at(-1) || `it ended with ${code}`;
  throw new DemoFailure(
    `${program} could not copy the disk`,
    why,
    "try another one: blockferry demo --client=blockferry",
  );
}

const PIECE_BYTES = 1024 * 1024;
const AT_ONCE = 8;

/** Reads everything in pieces, several under way at a time. */
async function copyOurselves(env: Env, job: { uri: string; to: string; onProgress: OnProgress }): Promise<void> {
  const { address, exportName } = parseNbdUri(job.uri);
  await using client = await connectNbd(env, { address, exportName });
  await using file = await open(job.to, "wx", 0o600);
  await file.truncate(client.sizeBytes);
  let next = 0;
  let done = 0;
  const copyOn = async (): Promise<void> => {
    const buffer = Buffer.allocUnsafe(PIECE_BYTES);
    while (next < client.sizeBytes) {
      const offset = next;
      const piece = buffer.subarray(0, Math.min(PIECE_BYTES, client.sizeBytes - offset));
      next += piece.length;
      await client.read(offset, piece);
      await file.write(piece, 0, piece.length, offset);
      done += piece.length;
      job.onProgress(done / client.sizeBytes);
    }
  };
  await Promise.all(Array.from({ length: AT_ONCE }, copyOn));
}

function onPath(program: string): boolean {
  return (process.env["PATH"] ?? "").split(delimiter).some((folder) => {
    try {
      accessSync(join(folder || ".", program), constants.X_OK);
      return true;
    } catch {
      return false;
    }
  });
}
