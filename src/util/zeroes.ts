/** Zeroes to write from and to compare with. One shared buffer, never written to; the kernel backs it with no memory. */

export const ZEROES_BYTES = 1024 * 1024;

/** Shared and read-only by agreement: hand out slices, write to none. */
export const ZEROES: Uint8Array = Buffer.alloc(ZEROES_BYTES);

/** Whether every byte is zero; true for no bytes. */
export function isZero(bytes: Uint8Array): boolean {
  for (let at = 0; at < bytes.length; at += ZEROES_BYTES) {
    const length = Math.min(ZEROES_BYTES, bytes.length - at);
    if (Buffer.compare(bytes.subarray(at, at + length), ZEROES.subarray(0, length)) !== 0) return false;
  }
  return true;
}
