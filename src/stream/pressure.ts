/** Whether demand reads wait for the background: who fetches in the background asks before each request. */
export interface Pressure {
  /** A demand read takes longer than the path alone explains. Cheap. */
  isLate(nowMs: number): boolean;
}

export const NO_PRESSURE: Pressure = { isLate: () => false };
