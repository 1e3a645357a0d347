/** Time. Durations come from `nowMs`, which never goes back; calendar time is for records that people read. */
export interface Clock {
  /** Milliseconds on a monotonic clock with an arbitrary start; fractions are allowed. */
  nowMs(): number;
  /** Milliseconds since 1970-01-01 UTC. May jump. */
  wallMs(): number;
  /** Calls `fire` once after `delayMs`, unless the timer is cancelled first. */
  setTimer(delayMs: number, fire: () => void): Timer;
}

export interface Timer {
  /** Idempotent; a timer that has fired may be cancelled too. */
  cancel(): void;
}
