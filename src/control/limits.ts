/** What one control socket may cost, whoever is at the other end. docs/PROTOCOL.md repeats these numbers. */

/** The body of one message, in either direction. */
export const MESSAGE_BYTES_MAX = 64 * 1024;

/** Clients at the same time. The one that has been quiet longest gives way to a new one. */
export const CONNECTIONS_MAX = 16;

/** Requests of one client that have no reply yet; the next one is answered with the error "busy". */
export const REQUESTS_MAX = 16;

/** Bytes that a client has not taken; above it, nothing more is read from that client until it has taken them all. */
export const UNSENT_BYTES_MAX = 256 * 1024;

/** Bytes that a subscriber has not taken; above it, events are counted instead of sent. */
export const EVENT_BACKLOG_BYTES_MAX = 64 * 1024;

/** Maps and arrays within each other. */
export const DEPTH_MAX = 16;

/** Runs in one page of `map` or `missing`: 27 bytes each at the most, so that a page fits a message. */
export const RUNS_PER_PAGE_MAX = 2000;

/** The events that are kept for whoever asks later. Their bytes must fit a reply together. */
export const RECENT_EVENTS_MAX = 100;
export const RECENT_EVENT_BYTES_MAX = 32 * 1024;

/** One event; the `message` of an error is cut to this many characters as well. */
export const EVENT_BYTES_MAX = 4 * 1024;
export const ERROR_TEXT_MAX = 1024;

/** Ranges that cannot be read, listed for one disk in `status`; the total is told beside them. */
export const ERRORS_LISTED_MAX = 16;
