/** Identifiers: 16 random bytes, as 32 lower-case hexadecimal digits. */
import type { Env } from "../env/env.ts";
import { formatId, ID_BYTES } from "../link/hello.ts";

export function newId({ random }: Pick<Env, "random">): string {
  const bytes = new Uint8Array(ID_BYTES);
  random.fill(bytes);
  return formatId(bytes);
}

export function idBytes(id: string): Uint8Array {
  return Uint8Array.from(Buffer.from(id, "hex"));
}
