/**
 * Pre-shared keys as GnuTLS keeps them (`psktool`): a text file with one `name:hexkey` a line. A name that begins with
 * `#` is itself in hex. Blank lines count for nothing.
 *
 * Looking a name up takes the same time whether it is there or not, and a client that claims an unknown name is handed
 * a random key: it then fails exactly as it would with a wrong key, so that names cannot be tried out.
 */
import { createHash, randomBytes, timingSafeEqual } from "node:crypto";
import { TlsError } from "./tls-error.ts";

/** OpenSSL's limits (PSK_MAX_IDENTITY_LEN, PSK_MAX_PSK_LEN) and the least that counts as a secret. */
const NAME_BYTES_MAX = 256;
const KEY_BYTES_MIN = 16;
const KEY_BYTES_MAX = 512;
const UNKNOWN_KEY_BYTES = 32;

export interface PskKey {
  readonly name: string;
  readonly key: Buffer;
}

/** The keys of one file. Never log an object of this class: the keys are private, and `toJSON` shows only the count. */
export class PskKeys {
  readonly #keys: readonly PskKey[];
  readonly #digests: readonly Buffer[];

  constructor(keys: readonly PskKey[]) {
    this.#keys = keys;
    this.#digests = keys.map((key) => digest(key.name));
  }

  get names(): readonly string[] {
    return this.#keys.map((key) => key.name);
  }

  has(name: string): boolean {
    return this.#find(name) !== undefined;
  }

  /** The key of `name`, or random bytes when there is none. */
  keyFor(name: string): Buffer {
    return this.#find(name)?.key ?? randomBytes(UNKNOWN_KEY_BYTES);
  }

  toJSON(): unknown {
    return { keys: this.#keys.length };
  }

  #find(name: string): PskKey | undefined {
    const wanted = digest(name);
    let found: PskKey | undefined;
    for (const [index, candidate] of this.#digests.entries()) {
      if (timingSafeEqual(candidate, wanted)) found = this.#keys[index];
    }
    return found;
  }
}

/** Reads the text of a key file. `path` is only for messages, which tell the line and never what stands in it. */
export function parsePskFile(text: string, path: string): PskKeys {
  const keys: PskKey[] = [];
  const seen = new Set<string>();
  for (const [index, rawLine] of text.split("\n").entries()) {
    const line = rawLine.trim();
    if (line === "") continue;
    const key = parseLine(line, `${path}, line ${index + 1}`);
    if (seen.has(key.name)) throw badLine(`${path}, line ${index + 1}`, "the name occurs twice");
    seen.add(key.name);
    keys.push(key);
  }
  if (keys.length === 0) throw badLine(path, "it holds no key");
  return new PskKeys(keys);
}

function parseLine(line: string, where: string): PskKey {
  const colon = line.lastIndexOf(":");
  if (colon < 0) throw badLine(where, 'there is no ":" between name and key');
  const name = parseName(line.slice(0, colon), where);
  const hex = line.slice(colon + 1);
  if (hex.length % 2 !== 0 || !/^[0-9a-fA-F]+$/.test(hex)) throw badLine(where, "the key is not in hex");
  const key = Buffer.from(hex, "hex");
  if (key.length < KEY_BYTES_MIN) throw badLine(where, `the key is shorter than ${KEY_BYTES_MIN} bytes`);
  if (key.length > KEY_BYTES_MAX) throw badLine(where, `the key is longer than ${KEY_BYTES_MAX} bytes`);
  return { name, key };
}

function parseName(text: string, where: string): string {
  if (text.startsWith("#") && !/^#([0-9a-fA-F]{2})+$/.test(text))
    throw badLine(where, "the name after # is not in hex");
  const name = text.startsWith("#") ? Buffer.from(text.slice(1), "hex").toString("utf8") : text;
  if (name === "") throw badLine(where, "the name is empty");
  if (Buffer.byteLength(name) > NAME_BYTES_MAX) throw badLine(where, `the name exceeds ${NAME_BYTES_MAX} bytes`);
  return name;
}

function badLine(where: string, why: string): TlsError {
  return new TlsError("credentials", {
    what: `cannot use the TLS key file ${where}`,
    why,
    hint: "one line is name:hexkey; `blockferry key FILE` writes one",
  });
}

function digest(name: string): Buffer {
  return createHash("sha256").update(name, "utf8").digest();
}
