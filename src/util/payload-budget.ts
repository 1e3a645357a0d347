/**
 * One limit on the payload bytes that all connections together hold in memory, shared fairly: no account can keep the
 * others from their share, however slowly its peer reads.
 *
 * Rules
 * - An account below its fair share is served while a floor stays free; above it, only while a reserve does.
 * - The floor is for accounts that hold next to nothing: however many others sit on what they have, a small request is
 *   served at once.
 * - Waiters are served first come, first served, those below their share before those above it, except that one which
 *   cannot be served yet does not hold up those behind it, unless it is *due*: it has waited longest, and meanwhile as
 *   much as the whole budget was granted to others.
 * - While a waiter is due, the others have half the reserve (for small requests all of it), and whoever holds memory from
 *   before gets no more until all of that came back. What comes back is therefore left for the waiter.
 * - A request larger than everything is granted when nothing else is held.
 *
 * So everybody is served in the end, provided that whoever holds memory gives it back; and whoever does not can delay
 * a large request, but nobody else.
 */

/** Kept free for accounts below their share, as a fraction of the whole. */
const RESERVE_FRACTION = 1 / 4;
/** The last half of the reserve, as a fraction of the whole. */
const FLOOR_FRACTION = 1 / 8;
/** What one account may have of the floor, as a fraction of the whole: 64 accounts find room there. */
const FLOOR_ACCOUNT_FRACTION = 1 / 512;
/** A share is never reckoned for fewer accounts than this, so that one early greedy account leaves room. */
const ACCOUNTS_MIN = 4;
/** Nor for more: a share must be enough for a request of ordinary size. */
const ACCOUNTS_MAX = 64;

interface Waiter {
  readonly account: BudgetAccount;
  readonly bytes: number;
  /** What had been granted, to everybody and ever, when it began to wait. */
  readonly sinceGrantedBytes: number;
  readonly granted: () => void;
}

export class PayloadBudget {
  readonly totalBytes: number;
  #heldBytes = 0;
  #grantedBytes = 0;
  #accounts = 0;
  readonly #waiters: Waiter[] = [];
  /** The first of the waiters, once it is due. */
  #due: Waiter | undefined;
  /** Held by the others, out of the reserve, since a waiter is due. */
  #lentBytes = 0;
  /** Counts the waiters that were ever due: tells what was held before from what was lent since. */
  #era = 0;

  constructor(totalBytes: number) {
    this.totalBytes = totalBytes;
  }

  get heldBytes(): number {
    return this.#heldBytes;
  }

  get waiting(): number {
    return this.#waiters.length;
  }

  openAccount(): BudgetAccount {
    this.#accounts++;
    return new BudgetAccount(this);
  }

  /** @internal Called by the account. */
  tryTake(account: BudgetAccount, bytes: number): boolean {
    this.#lookWhoIsDue();
    if (!this.#fits(account, bytes)) return false;
    this.#grant(account, bytes);
    return true;
  }

  /** @internal Called by the account. */
  wait(waiter: Omit<Waiter, "sinceGrantedBytes">): void {
    this.#waiters.push({ ...waiter, sinceGrantedBytes: this.#grantedBytes });
  }

  /** @internal Called by the account. */
  giveBack(account: BudgetAccount, bytes: number): void {
    this.#heldBytes -= bytes;
    if (this.#waiters.length === 0) return;
    if (this.#due !== undefined && account.era === this.#era) this.#lentBytes -= bytes;
    this.#serveWaiters();
  }

  /** @internal Called by the account. */
  closeAccount(account: BudgetAccount): void {
    this.#accounts--;
    if (this.#due?.account === account) this.#due = undefined;
    for (let i = this.#waiters.length - 1; i >= 0; i--) {
      if (this.#waiters[i]?.account === account) this.#waiters.splice(i, 1);
    }
    this.#serveWaiters();
  }

  #grant(account: BudgetAccount, bytes: number): void {
    this.#heldBytes += bytes;
    this.#grantedBytes += bytes;
    if (this.#due !== undefined) this.#lentBytes += bytes;
    account.received(bytes, this.#era);
  }

  #lookWhoIsDue(): void {
    const oldest = this.#waiters[0];
    if (this.#due !== undefined || oldest === undefined) return;
    if (this.#grantedBytes - oldest.sinceGrantedBytes < this.totalBytes) return;
    this.#due = oldest;
    this.#lentBytes = 0;
    this.#era++;
  }

  #fits(account: BudgetAccount, bytes: number): boolean {
    const free = this.totalBytes - this.#heldBytes;
    if (this.#due !== undefined) {
      const reserve = this.#reserveBeside(this.#due);
      const holdsFromBefore = account.heldBytes > 0 && account.era !== this.#era;
      if (holdsFromBefore || !this.#withinShare(account, bytes)) return false;
      return bytes <= Math.min(free, (this.#isLittle(account, bytes) ? reserve : reserve / 2) - this.#lentBytes);
    }
    if (this.#heldBytes === 0) return true;
    if (!this.#withinShare(account, bytes)) return free - bytes >= this.totalBytes * RESERVE_FRACTION;
    return free - bytes >= (this.#isLittle(account, bytes) ? 0 : this.totalBytes * FLOOR_FRACTION);
  }

  /** What the others have while a waiter is due. Where its request and the reserve do not go together, the reserve shrinks. */
  #reserveBeside({ bytes }: Waiter): number {
    return Math.min(this.totalBytes * RESERVE_FRACTION, Math.max(0, this.totalBytes - bytes));
  }

  #isLittle(account: BudgetAccount, bytes: number): boolean {
    return account.heldBytes + bytes <= this.totalBytes * FLOOR_ACCOUNT_FRACTION;
  }

  #withinShare(account: BudgetAccount, bytes: number): boolean {
    const accounts = Math.min(Math.max(this.#accounts, ACCOUNTS_MIN), ACCOUNTS_MAX);
    return account.heldBytes + bytes <= this.totalBytes / accounts;
  }

  #serveWaiters(): void {
    for (this.#lookWhoIsDue(); this.#due !== undefined; this.#lookWhoIsDue()) {
      const unlent = this.#reserveBeside(this.#due) - this.#lentBytes;
      if (this.#due.bytes > this.totalBytes - this.#heldBytes - unlent && this.#heldBytes > 0) break;
      this.#due = undefined;
      this.#serve(0);
    }
    this.#servePass(({ account, bytes }) => this.#withinShare(account, bytes));
    this.#servePass(() => true);
  }

  #servePass(belongs: (waiter: Waiter) => boolean): void {
    for (let i = this.#due === undefined ? 0 : 1; i < this.#waiters.length; ) {
      const waiter = this.#waiters[i];
      if (waiter !== undefined && belongs(waiter) && this.#fits(waiter.account, waiter.bytes)) this.#serve(i);
      else i++;
    }
  }

  #serve(index: number): void {
    for (const { account, bytes, granted } of this.#waiters.splice(index, 1)) {
      this.#grant(account, bytes);
      granted();
    }
  }
}

/** What one connection holds of the budget. */
export class BudgetAccount {
  readonly #budget: PayloadBudget;
  #heldBytes = 0;
  #returnedBytes = 0;
  #era = 0;
  #closed = false;

  /** @internal Use `PayloadBudget.openAccount`. */
  constructor(budget: PayloadBudget) {
    this.#budget = budget;
  }

  get heldBytes(): number {
    return this.#heldBytes;
  }

  /** All that was ever given back. */
  get returnedBytes(): number {
    return this.#returnedBytes;
  }

  /** @internal The budget's era when the oldest of what is held was granted. */
  get era(): number {
    return this.#era;
  }

  /** Takes `bytes` if they are to be had now. */
  tryTake(bytes: number): boolean {
    return this.#budget.tryTake(this, bytes);
  }

  /** Resolves when `bytes` have been taken; never, once the account is closed. */
  take(bytes: number): Promise<void> {
    if (this.#closed) return new Promise(() => {});
    if (this.tryTake(bytes)) return Promise.resolve();
    return new Promise((granted) => this.#budget.wait({ account: this, bytes, granted }));
  }

  /** @internal Called by the budget for everything it grants. */
  received(bytes: number, era: number): void {
    if (this.#heldBytes === 0) this.#era = era;
    this.#heldBytes += bytes;
  }

  giveBack(bytes: number): void {
    this.#heldBytes -= bytes;
    this.#returnedBytes += bytes;
    this.#budget.giveBack(this, bytes);
  }

  /** Ends the account; what it still holds is to be given back as before. Waiters of it are forgotten. Idempotent. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#budget.closeAccount(this);
  }
}
