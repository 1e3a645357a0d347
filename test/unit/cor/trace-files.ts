/**
 * Notes every change and sync of files in memory, so that the state after a crash at any instant can be built: what was
 * synced, and of every 4 KiB that was not, either nothing, all, the first 512 bytes, or all but those.
 */
import type { File, Files, OpenOptions } from "../../../src/env/files.ts";
import { FAKE_BLOCK_BYTES, FakeFiles } from "../../support/fake-files.ts";

type Event =
  | { readonly kind: "put"; readonly path: string; readonly offset: number; readonly bytes: Uint8Array }
  | { readonly kind: "syncBegin" | "syncEnd"; readonly path: string; readonly id: number }
  | { readonly kind: "note"; readonly note: string };

type Contents = Map<string, Uint8Array>;

export class TraceFiles implements Files {
  readonly inner: FakeFiles;
  readonly events: Event[] = [];
  #start: Contents = new Map();
  #syncs = 0;

  constructor(inner: FakeFiles) {
    this.inner = inner;
    this.restart();
  }

  /** Forgets the past: what the files hold now is durable. */
  restart(): void {
    this.events.length = 0;
    this.#start = new Map([...this.inner.disks].map(([path, disk]) => [path, contentsOf(disk)]));
  }

  note(note: string): void {
    this.events.push({ kind: "note", note });
  }

  async open(options: OpenOptions): Promise<File> {
    const file = await this.inner.open(options);
    const { path } = file;
    const put = (offset: number, bytes: Uint8Array) => this.events.push({ kind: "put", path, offset, bytes });
    const noteZero = async (offset: number, length: number, done: Promise<boolean>) => {
      const zeroed = await done;
      if (zeroed) put(offset, new Uint8Array(length));
      return zeroed;
    };
    const changed: Partial<File> = {
      write: (offset, from) => file.write(offset, from).then(() => void put(offset, from.slice())),
      writeNow(offset, from) {
        const count = file.writeNow(offset, from);
        if (count >= 0) put(offset, from.slice());
        return count;
      },
      punchHole: (offset, length) => noteZero(offset, length, file.punchHole(offset, length)),
      zeroRange: (offset, length) => noteZero(offset, length, file.zeroRange(offset, length)),
      dataSync: async () => {
        const id = ++this.#syncs;
        this.events.push({ kind: "syncBegin", path, id });
        // A sync takes a while, in which others go on.
        for (let turn = 0; turn < 3; turn++) await Promise.resolve();
        await file.dataSync();
        this.events.push({ kind: "syncEnd", path, id });
      },
    };
    return new Proxy(file, {
      get(target, key) {
        const value: unknown = key in changed ? changed[key as keyof File] : Reflect.get(target, key, target);
        return typeof value === "function" ? (value.bind(target) as unknown) : value;
      },
    });
  }

  exists = (path: string) => this.inner.exists(path);
  rename = (from: string, to: string) => this.inner.rename(from, to);
  unlink = (path: string) => this.inner.unlink(path);
  syncDirectory = (path: string) => this.inner.syncDirectory(path);

  /** The files after a kill of the process once `length` events had happened: the page cache lives on. */
  afterKill(length: number): FakeFiles {
    return filesOf(this.#contents(this.events.slice(0, length)));
  }

  /** Every state that a power cut may leave, once `length` events had happened. */
  *afterPowerLoss(length: number): Generator<FakeFiles> {
    const past = this.events.slice(0, length);
    const durable = this.#contents(this.#synced(past));
    const cached = this.#contents(past);
    const pending: (readonly [path: string, block: number])[] = [];
    for (const [path, bytes] of cached) {
      if (path.endsWith(".log")) continue;
      for (let at = 0; at < bytes.length; at += FAKE_BLOCK_BYTES) {
        const range = [at, at + FAKE_BLOCK_BYTES] as const;
        const old = durable.get(path)?.subarray(...range) ?? new Uint8Array(0);
        if (Buffer.compare(old, bytes.subarray(...range)) !== 0) pending.push([path, at]);
      }
    }
    for (let choice = 0; choice < 4 ** pending.length; choice++) {
      const left = new Map([...durable].map(([path, bytes]) => [path, bytes.slice()]));
      for (const [index, [path, at]] of pending.entries()) {
        const fate = Math.floor(choice / 4 ** index) % 4;
        const [from, to] = [
          [0, 0],
          [0, 512],
          [512, FAKE_BLOCK_BYTES],
          [0, FAKE_BLOCK_BYTES],
        ][fate] ?? [0, 0];
        const bytes = cached.get(path)?.subarray(at + (from ?? 0), at + (to ?? 0));
        if (bytes !== undefined) left.get(path)?.set(bytes, at + (from ?? 0));
      }
      yield filesOf(left);
    }
  }

  /** The changes that a sync which has ended found done when it began. */
  #synced(past: readonly Event[]): Event[] {
    const reach = new Map<string, number>();
    for (const event of past) {
      if (event.kind !== "syncEnd") continue;
      const begin = past.findIndex((other) => other.kind === "syncBegin" && other.id === event.id);
      reach.set(event.path, Math.max(reach.get(event.path) ?? 0, begin));
    }
    return past.filter((event, index) => event.kind === "put" && index < (reach.get(event.path) ?? 0));
  }

  #contents(events: readonly Event[]): Contents {
    const files = new Map([...this.#start].map(([path, bytes]) => [path, bytes.slice()]));
    for (const event of events) {
      if (event.kind !== "put") continue;
      let bytes = files.get(event.path) ?? new Uint8Array(0);
      if (bytes.length < event.offset + event.bytes.length) {
        const longer = new Uint8Array(event.offset + event.bytes.length);
        longer.set(bytes);
        bytes = longer;
      }
      bytes.set(event.bytes, event.offset);
      files.set(event.path, bytes);
    }
    return files;
  }
}

function contentsOf(disk: { size: number; get(offset: number, into: Uint8Array): number }): Uint8Array {
  const bytes = new Uint8Array(disk.size);
  disk.get(0, bytes);
  return bytes;
}

function filesOf(contents: Contents): FakeFiles {
  const files = new FakeFiles();
  for (const [path, bytes] of contents) files.add(path, bytes);
  return files;
}
