/** What an operation came to: "success", or its error. */
export function outcomeOf(work: Promise<unknown>): Promise<unknown> {
  return work.then(
    () => "success",
    (error: unknown) => error,
  );
}

/** Bytes of a device, read into a buffer that held something else. */
export async function bytesOf(
  device: { read(offset: number, into: Uint8Array): Promise<void> },
  offset: number,
  length: number,
): Promise<Buffer> {
  const into = Buffer.alloc(length, 0xee);
  await device.read(offset, into);
  return into;
}
