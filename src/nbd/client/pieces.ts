/** Long operations in pieces, a few at a time. */

/** Enough to keep a server busy, few enough to leave room for others on the connection. */
const PIECES_AT_ONCE = 4;

/** One piece of work: bytes [offset, offset + length). */
export type PieceWork = (offset: number, length: number) => Promise<void>;

/**
 * Calls `work` for consecutive pieces of at most `pieceMax` bytes; not at all for no bytes. When one fails no further
 * ones are begun, and the first error is thrown after those under way have ended: until then they use the caller's
 * buffer.
 */
export function eachPiece(offset: number, length: number, pieceMax: number, work: PieceWork): Promise<void> {
  if (length === 0) return Promise.resolve();
  if (length <= pieceMax) return work(offset, length);
  const end = offset + length;
  let next = offset;
  let failed = false;
  const worker = async (): Promise<void> => {
    while (next < end && !failed) {
      const at = next;
      const count = Math.min(pieceMax, end - at);
      next += count;
      try {
        await work(at, count);
      } catch (error) {
        failed = true;
        throw error;
      }
    }
  };
  return allOf(Array.from({ length: PIECES_AT_ONCE }, worker));
}

/** Waits for all of `works`, whatever becomes of them, and then throws the first error, if there was one. */
export async function allOf(works: readonly Promise<void>[]): Promise<void> {
  const outcomes = await Promise.allSettled(works);
  for (const outcome of outcomes) if (outcome.status === "rejected") throw outcome.reason;
}
