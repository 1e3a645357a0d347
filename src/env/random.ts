/** Randomness. The simulator gives a seeded one. */
export interface Random {
  /** A float in [0, 1). Not for secrets. */
  next(): number;
  /** Fills `into` with bytes fit for identifiers and secrets. */
  fill(into: Uint8Array): void;
}
