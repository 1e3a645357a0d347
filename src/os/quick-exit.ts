/**
 * Node's own way out waits for V8's threads, and one of them may be waiting for a collection by the very thread that waits
 * (nodejs/node#54918, open): the process then stays for ever, with everything done. Seen in one of ten programs that were
 * busy until they ended. The kernel's way out waits for nobody.
 *
 * What is left undone by that is Node's giving back of the standard streams: pipes that others write to as well must not stay
 * non-blocking. That is done here.
 */
import { readFileSync } from "node:fs";
import { flushCompileCache } from "node:module";
import { loadedNative, type Native } from "./native.ts";

const STANDARD_STREAMS = [0, 1, 2] as const;
// <asm-generic/fcntl.h>
const F_GETFL = 3;
const F_SETFL = 4;
const O_NONBLOCK = 0o4000;

interface WithReallyExit {
  /** What `process.exit` calls when its listeners have been told. */
  reallyExit(code: number): void;
}

/**
 * From now on `process.exit` ends the process at once, wherever native calls are in use anyway. To be called before anybody
 * uses the standard streams: they are left as they are now.
 */
export function exitQuickly(): void {
  const node = process as unknown as WithReallyExit;
  const nodesOwn = node.reallyExit.bind(process);
  // Only those: one that was found otherwise may have been made so by a neighbour, who will give it back.
  const blocking = STANDARD_STREAMS.filter((fd) => flagsOf(fd)?.nonBlocking === false);
  node.reallyExit = (code) => {
    const native = loadedNative();
    const exit = native?.bind("_exit", "int", ["int"]);
    if (native !== undefined && exit !== undefined) {
      flushCompileCache();
      for (const fd of blocking) setBlocking(native, fd);
      exit(code);
    }
    nodesOwn(code);
  };
}

/** Undefined: it is not open, or cannot be asked. */
function flagsOf(fd: number): { readonly nonBlocking: boolean } | undefined {
  try {
    const [, flags] = /^flags:\s*([0-7]+)$/m.exec(readFileSync(`/proc/self/fdinfo/${fd}`, "latin1")) ?? [];
    return flags === undefined ? undefined : { nonBlocking: (Number.parseInt(flags, 8) & O_NONBLOCK) !== 0 };
  } catch {
    return undefined;
  }
}

function setBlocking(native: Native, fd: number): void {
  const fcntl = native.bind("fcntl", "int", ["int", "int", "uintptr_t"]);
  const flags = fcntl?.(fd, F_GETFL, 0) ?? -1;
  if (flags !== -1 && (flags & O_NONBLOCK) !== 0) fcntl?.(fd, F_SETFL, flags & ~O_NONBLOCK);
}
