/**
 * One limit on the payload bytes that all connections together hold in memory, shared fairly: no account can keep the
 * others from their share, however slowly its peer reads.
 *
 * Rules: an account below its fair share is served while anything is free; above it, only while a reserve stays free
 * for the others. Waiters are served first come, first served, except that one which cannot be served yet does not hold
 * up those behind it. A request larger than everything is granted when nothing else is held.
 */

/** Kept free for accounts below their share, as a fraction of the whole. */
const RESERVE_FRACTION = 1 / 4;
/** A share is never reckoned for fewer accounts than this, so that one early greedy account leaves room. */
const ACCOUNTS_MIN = 4;

interface Waiter {
  readonly account: BudgetAccount;
  readonly bytes: number;
  readonly granted: () => void;
}

export class PayloadBudget {
  readonly totalBytes: number;
  #heldBytes = 0;
  #accounts = 0;
  readonly #waiters: Waiter[] = [];

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
    if (!this.#fits(account, bytes)) return false;
    this.#heldBytes += bytes;
    return true;
  }

  /** @internal Called by the account. */
  wait(waiter: Waiter): void {
    this.#waiters.push(waiter);
  }

  /** @internal Called by the account. */
  giveBack(bytes: number): void {
    this.#heldBytes -= bytes;
    if (this.#waiters.length > 0) this.#serveWaiters();
  }

  /** @internal Called by the account. */
  closeAccount(account: BudgetAccount): void {
    this.#accounts--;
    for (let i = this.#waiters.length - 1; i >= 0; i--) {
      if (this.#waiters[i]?.account === account) this.#waiters.splice(i, 1);
    }
    this.#serveWaiters();
  }

  #fits(account: BudgetAccount, bytes: number): boolean {
    if (this.#heldBytes === 0) return true;
    const free = this.totalBytes - this.#heldBytes;
    if (bytes > free) return false;
    const share = this.totalBytes / Math.max(this.#accounts, ACCOUNTS_MIN);
    return account.heldBytes + bytes <= share || free - bytes >= this.totalBytes * RESERVE_FRACTION;
  }

  #serveWaiters(): void {
    for (let i = 0; i < this.#waiters.length; ) {
      const waiter = this.#waiters[i];
      if (waiter?.account.tryTake(waiter.bytes) === true) {
        this.#waiters.splice(i, 1);
        waiter.granted();
      } else {
        i++;
      }
    }
  }
}

/** What one connection holds of the budget. */
export class BudgetAccount {
  readonly #budget: PayloadBudget;
  #heldBytes = 0;
  #closed = false;

  constructor(budget: PayloadBudget) {
    this.#budget = budget;
  }

  get heldBytes(): number {
    return this.#heldBytes;
  }

  /** Takes `bytes` if they are to be had now. */
  tryTake(bytes: number): boolean {
    if (!this.#budget.tryTake(this, bytes)) return false;
    this.#heldBytes += bytes;
    return true;
  }

  /** Resolves when `bytes` have been taken; never, once the account is closed. */
  take(bytes: number): Promise<void> {
    if (this.tryTake(bytes)) return Promise.resolve();
    return new Promise((granted) => this.#budget.wait({ account: this, bytes, granted }));
  }

  giveBack(bytes: number): void {
    this.#heldBytes -= bytes;
    this.#budget.giveBack(bytes);
  }

  /** Ends the account once nothing is held. Waiters of this account are forgotten. Idempotent. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#budget.closeAccount(this);
  }
}
