/**
 * What a source looks like, for a source that has no name of its own (a plain NBD export): its size, and hashes of blocks
 * sampled all over the disk, as one printable string that goes into the presence map.
 *
 * Best effort. A disk that differs from the first one in none of the samples is taken for it: another snapshot of the
 * same disk, say, or one of two disks that are still empty at every place sampled. It notices the wrong disk under the
 * right name; it is no proof that the right disk has stayed as it was.
 *
 * ```
 * v1:SIZE:HASHES      SIZE: bytes, decimal.  HASHES: for each sample 8 hexadecimal digits, the beginning of its SHA-256,
 *                     or 8 dashes where the source could not read its own disk.
 * ```
 */
import { createHash } from "node:crypto";
import type { BlockDevice } from "../block/device.ts";
import { BlockError } from "../block/error.ts";
import { ConnectionLostError } from "../nbd/client/errors.ts";

export const IDENTITY_SAMPLES = 16;
const SAMPLE_BYTES = 4096;
const HASH_DIGITS = 8;
const UNREADABLE = "-".repeat(HASH_DIGITS);
const FORM = /^v1:(\d+):((?:[0-9a-f]{8}|-{8})*)$/;

/** Where the samples of a disk of this size are: the first and the last block among them, ascending, none twice. */
export function samplesOf(sizeBytes: number): { readonly offset: number; readonly length: number }[] {
  const blocks = Math.ceil(sizeBytes / SAMPLE_BYTES);
  const count = Math.min(blocks, IDENTITY_SAMPLES);
  return Array.from({ length: count }, (_, sample) => {
    // Divided first: a product with the size could pass 2^53.
    const block = count === 1 ? 0 : Math.round(sample * ((blocks - 1) / (count - 1)));
    const offset = block * SAMPLE_BYTES;
    return { offset, length: Math.min(SAMPLE_BYTES, sizeBytes - offset) };
  });
}

/** Reads the samples, all at once. Rejects when the link is lost, or the device closed; a bad block is no failure. */
export async function identifySource(source: Pick<BlockDevice, "sizeBytes" | "read">): Promise<string> {
  const hashes = samplesOf(source.sizeBytes).map(async ({ offset, length }) => {
    const bytes = new Uint8Array(length);
    try {
      await source.read(offset, bytes);
    } catch (error) {
      if (!(error instanceof BlockError) || error instanceof ConnectionLostError || error.code === "shutting-down") {
        throw error;
      }
      return UNREADABLE;
    }
    return createHash("sha256").update(bytes).digest("hex").slice(0, HASH_DIGITS);
  });
  // All have settled before one failure is passed on: their buffers are in use until then.
  const outcomes = await Promise.allSettled(hashes);
  const digits = outcomes.map((outcome) => {
    if (outcome.status === "rejected") throw outcome.reason;
    return outcome.value;
  });
  return `v1:${source.sizeBytes}:${digits.join("")}`;
}

/**
 * "same": same size, and no sample differs that both could read. "unknown": not one sample could be compared, so nobody
 * can say. "other": anything else, also what `identifySource` did not make.
 */
export function compareSources(known: string, found: string): "same" | "other" | "unknown" {
  const [knownSize, knownHashes] = parts(known);
  const [foundSize, foundHashes] = parts(found);
  if (knownSize === undefined || knownSize !== foundSize || knownHashes.length !== foundHashes.length) return "other";
  let compared = 0;
  for (const [sample, hash] of knownHashes.entries()) {
    const other = foundHashes[sample];
    if (hash === UNREADABLE || other === UNREADABLE) continue;
    if (hash !== other) return "other";
    compared += 1;
  }
  return compared > 0 || knownHashes.length === 0 ? "same" : "unknown";
}

function parts(identity: string): [size: string | undefined, hashes: readonly string[]] {
  const [, size, digits = ""] = FORM.exec(identity) ?? [];
  return [size, digits.match(new RegExp(`.{${HASH_DIGITS}}`, "g")) ?? []];
}
