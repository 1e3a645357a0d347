/**
 * The way to the Linux calls that Node lacks: koffi, an optional dependency. Everything works without it, more slowly
 * or with less (`capabilities.ts` says what). Nothing else in the sources may require koffi.
 */
import { createRequire } from "node:module";
import { endianness } from "node:os";

/** C types that we pass. No pointers: an address is a `uintptr_t`, so that koffi neither checks nor copies anything. */
export type CType = "int" | "uint32_t" | "int64_t" | "uintptr_t";

export interface NativeFunction {
  /** Numbers stand for every type above; results beyond 2^53 do not occur. */
  (...args: readonly number[]): number;
  /** Runs on a thread of libuv's pool. `errno()` belongs to the call only until `done` returns. */
  async(...args: [...(readonly number[]), (error: unknown, result: number) => void]): void;
}

export interface Native {
  /** A function of the C library; undefined when it has none of that name. */
  bind(name: string, result: CType, parameters: readonly CType[]): NativeFunction | undefined;
  /** Where the bytes of `buffer` are. They stay there, as long as the buffer lives and is not detached. */
  addressOf(buffer: ArrayBufferLike): number;
  /** The error number of the latest call that failed. */
  errno(): number;
}

export type NativeResult =
  | { readonly state: "loaded"; readonly native: Native }
  | { readonly state: "off"; readonly reason: string };

/** Architectures with the asm-generic layouts and numbers that our callers encode. */
const ARCHITECTURES: readonly string[] = ["x64", "arm64", "riscv64", "loong64"];

let loaded: Native | undefined;

/** What this process has loaded, if it has. */
export function loadedNative(): Native | undefined {
  return loaded;
}

/** Requires koffi anew each time it is called, which is cheap. `disabled` is what BLOCKFERRY_NO_NATIVE=1 asks for. */
export function loadNative(
  options: { readonly disabled: boolean } = { disabled: process.env["BLOCKFERRY_NO_NATIVE"] === "1" },
): NativeResult {
  if (options.disabled) return { state: "off", reason: "switched off by BLOCKFERRY_NO_NATIVE=1" };
  if (process.platform !== "linux" || !ARCHITECTURES.includes(process.arch) || endianness() !== "LE") {
    return { state: "off", reason: `not known for ${process.platform} on ${process.arch}` };
  }
  try {
    const koffi = createRequire(import.meta.url)("koffi") as Koffi;
    loaded = new KoffiNative(koffi);
    return { state: "loaded", native: loaded };
  } catch (error) {
    const text = error instanceof Error ? (error.message.split("\n", 1)[0] ?? "") : String(error);
    return { state: "off", reason: `koffi does not load: ${text}` };
  }
}

/** As much of koffi as we use. */
interface Koffi {
  load(path: string | null): { func(name: string, result: string, parameters: readonly string[]): NativeFunction };
  address(buffer: ArrayBufferLike): bigint;
  errno(): number;
}

class KoffiNative implements Native {
  readonly #koffi: Koffi;
  readonly #library: ReturnType<Koffi["load"]>;
  readonly errno: () => number;

  constructor(koffi: Koffi) {
    this.#koffi = koffi;
    // The C library that this process runs with, glibc or musl.
    this.#library = koffi.load(null);
    this.errno = () => koffi.errno();
  }

  bind(name: string, result: CType, parameters: readonly CType[]): NativeFunction | undefined {
    try {
      return this.#library.func(name, result, parameters);
    } catch {
      return undefined;
    }
  }

  addressOf(buffer: ArrayBufferLike): number {
    return Number(this.#koffi.address(buffer));
  }
}

/** Where the bytes of typed arrays are. Asking koffi takes 0.3 µs, asking this map 0.02 µs. */
export class BufferAddresses {
  readonly #native: Native;
  readonly #known = new WeakMap<ArrayBufferLike, number>();

  constructor(native: Native) {
    this.#native = native;
  }

  of(bytes: Uint8Array): number {
    const buffer = bytes.buffer;
    let address = this.#known.get(buffer);
    if (address === undefined) {
      address = this.#native.addressOf(buffer);
      this.#known.set(buffer, address);
    }
    return address + bytes.byteOffset;
  }
}
