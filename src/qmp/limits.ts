/** What a QMP connection may cost, and how long it is waited for. */

/** One message of QEMU's. The longest that we ask for, `query-migrate`, has about 2 KiB. */
export const MESSAGE_BYTES_MAX = 1024 * 1024;

/** Commands without a reply yet. QEMU itself stops reading at 8. */
export const COMMANDS_MAX = 8;

/** Bytes that QEMU has not taken: it does not read its monitor any more. */
export const UNSENT_BYTES_MAX = 256 * 1024;

/** A QEMU that is free greets within milliseconds. */
export const GREETING_TIMEOUT_MS = 3000;

/** While others wait to be let in, for as long as a greeting may take. */
export const DIAL_AGAIN_MS = 100;

/** QEMU answers from its main loop, which `stop` and flushes hold up while disks are slow. */
export const COMMAND_TIMEOUT_MS = 30_000;

/** How often QEMU is asked how its migration is going, should an event be missing, and for progress. */
export const POLL_MS = 1000;

/** The same while the guest stands still. */
export const URGENT_POLL_MS = 20;

/** After a failed migration QEMU sets the guest going again, a moment later than it says that it failed. */
export const RESUME_TIMEOUT_MS = 10_000;
