/**
 * Whole reads and writes. The kernel may do less than it was asked; these go on until all is done. (libuv itself repeats
 * a call that a signal interrupted.)
 */
import { read, write, writeSync } from "node:fs";
import { FileError } from "../env/files.ts";

/** The kernel does at most 2 GiB − 4 KiB in one call, and Node refuses 2 GiB. */
const CALL_BYTES_MAX = 2 ** 30;

type Done = (error: Error | null, count: number) => void;

/** Fills `into`, in the thread pool; `done` gets the bytes read, fewer only at the end of the file. */
export function readFully(fd: number, offset: number, into: Uint8Array, done: Done): void {
  let at = 0;
  const next = () => read(fd, into, at, Math.min(into.length - at, CALL_BYTES_MAX), offset + at, step);
  const step = (error: Error | null, count: number) => {
    if (!error) at += count;
    if (error || count === 0 || at === into.length) done(error, at);
    else next();
  };
  next();
}

/** Writes all of `bytes`, in the thread pool; `done` gets the bytes written, fewer only with an error. */
export function writeFully(fd: number, offset: number, bytes: Uint8Array, done: Done): void {
  let at = 0;
  const next = () => write(fd, bytes, at, Math.min(bytes.length - at, CALL_BYTES_MAX), offset + at, step);
  const step = (error: Error | null, count: number) => {
    if (!error) at += count;
    if (error || at === bytes.length) done(error, at);
    else if (count === 0) done(stuck(), at);
    else next();
  };
  next();
}

/** Writes all of `bytes` on this thread. Throws what Node throws. */
export function writeFullyNow(fd: number, offset: number, bytes: Uint8Array): void {
  let at = 0;
  while (at < bytes.length) {
    const count = writeSync(fd, bytes, at, bytes.length - at, offset + at);
    if (count === 0) throw stuck();
    at += count;
  }
}

/** No file system should write nothing and call it a success; asking again for ever would be worse. */
function stuck(): FileError {
  return new FileError("EIO", "the file system wrote none of the bytes (EIO)");
}
