/**
 * A device whose file may still belong to another host. Before `open` it knows its size and nothing else; opening
 * writes nothing. See "Phases and handover" in docs/ARCHITECTURE.md.
 */
import type { BlockDevice } from "./device.ts";

export interface Activatable extends BlockDevice {
  /** Reads headers and begins to serve. Nothing is written before the first guest write. */
  open(): Promise<void>;
  /** Drops every cached header and table without writing; the next access reads them again. */
  invalidate(): Promise<void>;
  /** Flushes, releases locks, and refuses writes from now on. */
  deactivate(): Promise<void>;
}
