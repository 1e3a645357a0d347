/** Every limit of a link, in one place, and what the kinds of channels get. */

/** What a channel is for; decides who goes first when there is too much to send. */
export type ChannelKind = "message" | "demand" | "tunnel" | "background";

/** In order of precedence. The index is the kind's number on the wire. */
export const CHANNEL_KINDS: readonly ChannelKind[] = ["message", "demand", "tunnel", "background"];

const KIB = 1024;
const MIB = 1024 * 1024;

export interface LinkLimits {
  /** Bytes of a channel that may be under way in one direction, and that are kept for being sent again. */
  readonly windowBytes: Readonly<Record<ChannelKind, number>>;
  /** Windows of all channels, both directions, together; a channel that comes late gets a smaller one. */
  readonly memoryBytesMax: number;
  /** Channels at the same time, whoever opened them. */
  readonly channelsMax: number;
  /** From a connection's first byte to the end of its hello. */
  readonly helloTimeoutMs: number;
  /** Connections whose hello is being waited for, on the side that was dialled. */
  readonly hellosMax: number;
  /**
   * What is handed to the stream before it has taken the rest, and what the kernel takes before it has sent the rest: what a
   * demand read waits for behind background data.
   */
  readonly sendAheadBytes: number;
  /** A PING is sent so long after the last answer. */
  readonly pingEveryMs: number;
  /** The peer is dead when a PING has had no answer, and nothing else shows progress, for so long of our own running time. */
  readonly silenceMsMax: number;
  /** What `close` waits for the peer to take the goodbye. */
  readonly closeMsMax: number;
}

export const DEFAULT_LINK_LIMITS: LinkLimits = {
  windowBytes: { message: 256 * KIB, demand: 4 * MIB, tunnel: 8 * MIB, background: 16 * MIB },
  memoryBytesMax: 128 * MIB,
  channelsMax: 128,
  helloTimeoutMs: 10_000,
  hellosMax: 4,
  sendAheadBytes: 64 * KIB,
  pingEveryMs: 2000,
  silenceMsMax: 11_000,
  closeMsMax: 1000,
};

/** No channel gets less when memory is scarce, nor keeps less of what it sends. */
export const WINDOW_BYTES_MIN = 64 * KIB;
/** What a peer may grant: more would be a mistake, or an attempt to make us keep too much. */
export const WINDOW_BYTES_MAX = 1024 * MIB;
/** One channel's share of the memory that is left. */
export const WINDOW_SHARE = 1 / 8;
/** Data of one frame, as we send them: half of what is allowed, so that nobody waits long behind one. */
export const DATA_BYTES_MAX = 64 * KIB;
/**
 * A reader tells how far it has got after a quarter of the window, or so many bytes, or so many pieces, whichever comes
 * first. Whoever sends relies on it: `WINDOW_BYTES_MIN` is more than that, headers included.
 */
export const CREDIT_EVERY_BYTES = 32 * KIB;
export const CREDIT_EVERY_PIECES = 64;
/** Frames of a channel that are not acknowledged; further bytes wait, and become fewer, larger frames. */
export const FRAMES_IN_FLIGHT_MAX = 4096;
/** The background's share of what is sent while it has something to send: the tenth that is promised, and a margin. */
export const BACKGROUND_SHARE = 1 / 8;
/** Bytes of a channel's label, and of the text of a RESET. */
export const LABEL_BYTES_MAX = 128;
export const RESET_TEXT_BYTES_MAX = 256;
