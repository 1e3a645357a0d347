/** Clusters [first, first + count) of a disk. */
export interface ClusterRange {
  readonly first: number;
  readonly count: number;
}
