/**
 * Named switches at ordering points. In production every one is off. The simulator's mutants turn one on to prove that
 * the oracle notices when that ordering rule is broken.
 */
export interface Chaos {
  /** True when the mutant called `point` is to misbehave here. */
  on(point: string): boolean;
}

export const NO_CHAOS: Chaos = { on: () => false };
