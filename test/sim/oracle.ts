/**
 * What a guest may find on its disk. The disk is cut into cells; every write puts a value of its own into each cell it
 * covers, so that a cell's bytes name the write they came from, and the place they belong to.
 *
 * One rule serves all cases. A value is *replaced* by another one when its write had ended before the other one began.
 * A value may be seen unless it was replaced by one that counts:
 * - to a read, a write counts that was acknowledged before the read began (so it finds that one, or a concurrent one);
 * - after a process kill, every acknowledged write counts;
 * - after power loss, a write counts that a flush or FUA made durable. A flush covers what was acknowledged before the
 *   flush *began*: it is kept as a sequence number, so that overlapping flushes cannot take away too much.
 * A write that failed, and a discard, may have happened or not: they count never, and may be seen.
 */

const WORD_BYTES = 8;
const ZERO = 0;
const PLACE = 0x5eed_0000;

export class OracleError extends Error {
  override readonly name = "OracleError";
}

/** A write, zero or discard under way or done, for all the cells it covers. */
export interface Change {
  /** What its cells hold: 0 for zeroes. */
  readonly value: number;
  readonly startedAt: number;
  /** When it could do no more; `Infinity` until then. */
  endedAt: number;
  /** It was acknowledged, and is no mere hint. */
  acknowledged: boolean;
  /** Acknowledged as durable by itself. */
  durable: boolean;
  readonly hint: boolean;
  /** It may be in the page cache and nowhere else, as a clean page: no flush will ever cover it. */
  withdrawn?: true;
}

/** What a cell was found to hold after a crash: several values where it was torn. */
interface Found extends Change {
  readonly values: readonly number[];
}

/**
 * `after-latch`: the process was killed after an I/O error had lost data, whether it knew of that yet or not. What it had
 * not made durable may be gone, or be in the page cache only, where no later flush finds it: it is promised to nobody any
 * more.
 */
export type Survival = "process-kill" | "after-latch" | "power-loss";

export interface OracleOptions {
  readonly sizeBytes: number;
  /** A multiple of 8 that divides the size. */
  readonly cellBytes: number;
  /** Cells that are zero before the first change; by default none. */
  readonly zeroAtFirst?: (cell: number) => boolean;
}

export class Oracle {
  readonly sizeBytes: number;
  readonly cellBytes: number;
  readonly cells: number;
  #sequence = 1;
  #nextValue = 2;
  /** Acknowledged before this: durable. */
  #flushedBefore = 0;
  readonly #changes: Change[][] = [];
  readonly #zeroAtFirst: (cell: number) => boolean;
  readonly #reads = new Set<number>();
  #unknown: Change[] = [];
  /** Reads and checks of cells that were made. */
  checked = 0;

  constructor({ sizeBytes, cellBytes, zeroAtFirst = () => false }: OracleOptions) {
    if (cellBytes % WORD_BYTES !== 0 || sizeBytes % cellBytes !== 0) throw new RangeError("cells do not fit the disk");
    this.sizeBytes = sizeBytes;
    this.cellBytes = cellBytes;
    this.cells = sizeBytes / cellBytes;
    this.#zeroAtFirst = zeroAtFirst;
    const base = { value: 1, startedAt: 0, endedAt: 0, acknowledged: true, durable: true, hint: false };
    const zero = { ...base, value: ZERO };
    for (let cell = 0; cell < this.cells; cell++) this.#changes.push([zeroAtFirst(cell) ? zero : base]);
  }

  /** The disk as it is before the first change. Non-zero except where `zeroAtFirst` says so. */
  baseContent(): Uint8Array {
    const bytes = new Uint8Array(this.sizeBytes);
    this.#fill(bytes, 0, 1);
    for (let cell = 0; cell < this.cells; cell++) {
      if (this.#zeroAtFirst(cell)) bytes.fill(0, cell * this.cellBytes, (cell + 1) * this.cellBytes);
    }
    return bytes;
  }

  /** A write of `bytes` (whole cells) begins: fills them with what it is to write. */
  beginWrite(firstCell: number, bytes: Uint8Array): Change {
    const value = this.#nextValue++;
    this.#fill(bytes, firstCell, value);
    return this.#begin(firstCell, bytes.length / this.cellBytes, { value, hint: false });
  }

  beginZero(firstCell: number, count: number): Change {
    return this.#begin(firstCell, count, { value: ZERO, hint: false });
  }

  beginDiscard(firstCell: number, count: number): Change {
    return this.#begin(firstCell, count, { value: ZERO, hint: true });
  }

  /** The change was acknowledged; `fua`: as durable. */
  acknowledge(change: Change, fua = false): void {
    change.endedAt = this.#sequence++;
    change.acknowledged = !change.hint;
    change.durable = fua && !change.hint;
  }

  /**
   * The change failed. It may have happened; if `lingers`, it may happen still, until `endLingering`: a server that lost
   * its client may yet carry out what it had been asked for.
   */
  fail(change: Change, lingers: boolean): void {
    if (lingers) this.#unknown.push(change);
    else change.endedAt = this.#sequence++;
  }

  /** Nothing that failed can happen any more. */
  endLingering(): void {
    const now = this.#sequence++;
    for (const change of this.#unknown) change.endedAt = now;
    this.#unknown = [];
  }

  beginFlush(): number {
    return this.#sequence++;
  }

  acknowledgeFlush(begunAt: number): void {
    this.#flushedBefore = Math.max(this.#flushedBefore, begunAt);
  }

  beginRead(): number {
    const begunAt = this.#sequence++;
    this.#reads.add(begunAt);
    return begunAt;
  }

  endRead(begunAt: number): void {
    this.#reads.delete(begunAt);
  }

  /** Checks what a read that began at `begunAt` has returned. Throws `OracleError`. */
  checkRead(begunAt: number, firstCell: number, bytes: Uint8Array): void {
    const counts = (change: Change): boolean => change.acknowledged && change.endedAt < begunAt;
    this.#check(firstCell, bytes, (cell, values) => this.#allow(cell, values, counts, "a read"));
  }

  /**
   * Checks the whole disk after a crash, once nothing of before it can happen any more. From then on what was found is
   * what the disk holds: durably after power loss.
   */
  recover(survival: Survival, bytes: Uint8Array): void {
    if (bytes.length !== this.sizeBytes) throw new OracleError(`the disk has ${bytes.length} bytes`);
    this.endLingering();
    this.#endUnderWay();
    const needsFlush = survival !== "process-kill";
    const counts = (change: Change): boolean =>
      change.acknowledged && (!needsFlush || change.durable || change.endedAt < this.#flushedBefore);
    this.#check(0, bytes, (cell, values) => {
      this.#allow(cell, values, counts, `after ${survival}, a read`);
      if (survival === "power-loss") this.#changes[cell] = [this.#foundDurable(values)];
      else if (survival === "process-kill") this.#settleCell(cell, values);
    });
    if (survival === "after-latch") this.#withdraw(counts);
  }

  /** What does not count now never will. */
  #withdraw(counts: (change: Change) => boolean): void {
    for (const list of this.#changes) {
      for (const change of list) {
        if (!counts(change)) Object.assign(change, { acknowledged: false, withdrawn: true });
      }
    }
  }

  /** What was under way when everything stopped happened, or did not; it cannot happen any more. */
  #endUnderWay(): void {
    const now = this.#sequence++;
    for (const list of this.#changes) {
      for (const change of list) if (change.endedAt === Infinity) change.endedAt = now;
    }
    this.#reads.clear();
  }

  /** The changes that overlapped in the end settled on `values`; those that lost are replaced, durable or not. */
  #settleCell(cell: number, values: readonly number[]): void {
    const list = this.#changes[cell] ?? [];
    // The one found is in the page cache, not on the disk: after power loss the older ones may come back.
    const found: Found = { ...this.#foundDurable(values), durable: false, startedAt: this.#sequence++ };
    found.endedAt = this.#sequence++;
    const withdrawn = list.some((it) => it.withdrawn && valuesIn(it).some((value) => values.includes(value)));
    if (withdrawn) Object.assign(found, { acknowledged: false, withdrawn });
    list.push(found);
  }

  #foundDurable(values: readonly number[]): Found {
    const value = values[0] ?? ZERO;
    return {
      value,
      values,
      startedAt: this.#sequence,
      endedAt: this.#sequence++,
      acknowledged: true,
      durable: true,
      hint: false,
    };
  }

  #begin(firstCell: number, count: number, kind: Pick<Change, "value" | "hint">): Change {
    const startedAt = this.#sequence++;
    const change = { ...kind, startedAt, endedAt: Infinity, acknowledged: false, durable: false };
    for (let cell = firstCell; cell < firstCell + count; cell++) {
      const list = this.#changes[cell];
      if (list === undefined) throw new RangeError(`there is no cell ${cell}`);
      if (list.length >= 16) this.#forget(cell, list);
      this.#changes[cell]?.push(change);
    }
    return change;
  }

  /** Drops what nobody may see any more, whatever happens. */
  #forget(cell: number, list: readonly Change[]): void {
    const oldestRead = Math.min(this.#sequence, ...this.#reads);
    const final = list.filter(
      (change) =>
        change.acknowledged && change.endedAt < oldestRead && (change.durable || change.endedAt < this.#flushedBefore),
    );
    const newest = Math.max(0, ...final.map((change) => change.startedAt));
    this.#changes[cell] = list.filter((change) => !(change.endedAt < newest));
  }

  #check(firstCell: number, bytes: Uint8Array, allow: (cell: number, values: readonly number[]) => void): void {
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    for (let at = 0; at < bytes.length; at += this.cellBytes) {
      const cell = firstCell + at / this.cellBytes;
      this.checked += 1;
      allow(cell, this.#valuesOf(view, at, cell));
    }
  }

  /** The values that the words of a cell name: one, unless it is torn. */
  #valuesOf(view: DataView, from: number, cell: number): number[] {
    const values: number[] = [];
    for (let at = from; at < from + this.cellBytes; at += WORD_BYTES) {
      const value = view.getUint32(at, true);
      const place = view.getUint32(at + 4, true);
      if (place !== (value === ZERO ? 0 : (PLACE ^ cell) >>> 0)) {
        const where = place === 0 ? "nowhere" : `cell ${(place ^ PLACE) >>> 0}`;
        throw new OracleError(`cell ${cell} holds value ${value} of ${where}`);
      }
      if (values.at(-1) !== value && !values.includes(value)) values.push(value);
    }
    return values;
  }

  #allow(cell: number, values: readonly number[], counts: (change: Change) => boolean, how: string): void {
    const list = this.#changes[cell] ?? [];
    let replacedBefore = 0;
    for (const change of list)
      if (change.startedAt > replacedBefore && counts(change)) replacedBefore = change.startedAt;
    for (const value of values) {
      const seen = list.some((change) => change.endedAt >= replacedBefore && valuesIn(change).includes(value));
      if (seen) continue;
      const known = list.map(
        (it) => `${valuesIn(it).join("|")}@${it.startedAt}-${it.endedAt}${it.acknowledged ? "a" : ""}`,
      );
      throw new OracleError(
        `${how} of cell ${cell} found value ${value}; flushed before ${this.#flushedBefore}, ` +
          `replaced before ${replacedBefore}, known: ${known.join(" ")}`,
      );
    }
  }

  #fill(bytes: Uint8Array, firstCell: number, value: number): void {
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    for (let at = 0; at < bytes.length; at += WORD_BYTES) {
      view.setUint32(at, value, true);
      view.setUint32(at + 4, (PLACE ^ (firstCell + Math.floor(at / this.cellBytes))) >>> 0, true);
    }
  }
}

function valuesIn(change: Change): readonly number[] {
  return "values" in change ? (change as Found).values : [change.value];
}
