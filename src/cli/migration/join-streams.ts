/** Two byte streams made into one: what comes from either goes to the other, in bounded memory. */
import type { ByteStream } from "../../env/links.ts";

/** What may wait in front of a stream that is behind. */
const PENDING_BYTES_MAX = 1024 * 1024;

/**
 * Both are used up by it. When one breaks, so does the other; an orderly end is passed on, each direction by itself.
 * Resolves when both are gone.
 */
export async function joinStreams(a: ByteStream, b: ByteStream): Promise<void> {
  const ends = { left: 2 };
  await Promise.all([attach(a, b, ends), attach(b, a, ends)]);
}

/** Resolves when `from` is gone. */
function attach(from: ByteStream, to: ByteStream, ends: { left: number }): Promise<void> {
  const { promise, resolve } = Promise.withResolvers<void>();
  from.attach({
    onBytes: (bytes) => {
      // They live in a receive buffer that is used again.
      to.write(Uint8Array.from(bytes));
      if (to.pendingBytes > PENDING_BYTES_MAX) from.pause();
    },
    onEnd: () => {
      ends.left -= 1;
      to.end();
    },
    onClose: (error) => {
      // After both have ended, what is queued is still on its way.
      if (error !== undefined || ends.left > 0) to.destroy(error);
      resolve();
    },
    // What was written to it has gone: the other side may bring more.
    onDrain: () => to.resume(),
  });
  return promise;
}
