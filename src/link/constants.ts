/**
 * Numbers of the link's protocol. The specification is docs/PROTOCOL.md, "The link". All integers on the wire are
 * big-endian; offsets count the bytes of one direction of one channel.
 */

/** The private NBD option that turns a session into a link: "blkf". */
export const NBD_OPT_BLOCKFERRY_LINK = 0x626c_6b66;
export const LINK_MAGIC = 0x626c_6b66;
export const LINK_VERSION = 1;

export const FRAME_HEADER_BYTES = 8;
/** The most that a frame may carry. */
export const FRAME_PAYLOAD_MAX = 128 * 1024;

// Frame types.
export const FRAME_HELLO = 1;
export const FRAME_OPEN = 2;
export const FRAME_DATA = 3;
export const FRAME_CREDIT = 4;
export const FRAME_CLOSE = 5;
export const FRAME_RESET = 6;
export const FRAME_PING = 7;
export const FRAME_PONG = 8;

/** Frame flag of RESET: it answers one, and is not answered itself. */
export const RESET_ANSWER = 1 << 0;

/** Hello flag, of the side that was dialled: both go on with the channels they have. */
export const HELLO_RESUMED = 1 << 0;
/** Flag of a channel in a HELLO: its sender has reset it, and waits for the answer. */
export const ENTRY_RESETTING = 1 << 0;

/** The channel that stands for the link itself. */
export const LINK_CHANNEL = 0;
export const CHANNEL_ID_MAX = 255;

// Why a channel, or on channel 0 the link, was reset.
export const RESET_DESTROYED = 1;
export const RESET_LIMIT = 2;
/** The link was closed for good. */
export const RESET_LINK_CLOSED = 3;
/** Another destination has the link. */
export const RESET_OTHER_PEER = 4;
/** Another migration. */
export const RESET_OTHER_LINK = 5;
/** Tracking id, term, or whatever else the owner of the link looks at. */
export const RESET_POLICY = 6;
/** A newer connection of the same peer was there first, or too many are being looked at: try again. */
export const RESET_BUSY = 7;
export const RESET_VERSION = 8;
