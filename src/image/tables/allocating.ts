/** What allocating writes of every format do: they pass the gate, then hold the lock of their clusters. */
import type { RangeLock } from "../../util/range-lock.ts";
import type { Range } from "./table-image.ts";

export interface Allocating {
  readonly geometry: { readonly clusterBytes: number };
  /** Over clusters. */
  readonly locks: RangeLock;
  /** L2 tables that are being made, by their index in the L1 table. */
  readonly newTables: Map<number, Promise<void>>;
  /** Passes the gate. `leaveAllocation` is to be called exactly once. */
  enterAllocation(): Promise<void>;
  leaveAllocation(): void;
}

/** Runs `act` with the clusters of the range, which is not empty. `unlocked` is a mutant. */
export async function withClusters(
  session: Allocating,
  { offset, length }: Range,
  unlocked: boolean,
  act: () => Promise<void>,
): Promise<void> {
  const { clusterBytes } = session.geometry;
  const first = Math.floor(offset / clusterBytes);
  const last = Math.floor((offset + length - 1) / clusterBytes);
  await session.enterAllocation();
  try {
    if (unlocked) return await act();
    const unlock = await session.locks.take(first, last);
    try {
      await act();
    } finally {
      unlock();
    }
  } finally {
    session.leaveAllocation();
  }
}

/** Has the L2 table of `l1Index` made by `make`, once however many need it. */
export async function makeOnce(
  { newTables }: Pick<Allocating, "newTables">,
  l1Index: number,
  make: () => Promise<void>,
): Promise<void> {
  const running = newTables.get(l1Index);
  if (running !== undefined) return await running;
  const making = make().finally(() => newTables.delete(l1Index));
  newTables.set(l1Index, making);
  await making;
}
