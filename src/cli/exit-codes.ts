/** Exit codes, a contract with scripts. Named as in <sysexits.h>, where it has a name; docs/CLI.md explains each. */
export const EXIT_OK = 0;
export const EXIT_FAILURE = 1;
/** The answer is "no", or what was waited for was not reached. */
export const EXIT_NO = 2;
export const EXIT_USAGE = 64;
/** A server or source that is needed does not answer. */
export const EXIT_UNAVAILABLE = 69;
/** An image, a file or a disk did not do what it should. */
export const EXIT_IO = 74;
/** Somebody else is in the way just now, or the work was cut short: the same command may succeed later. */
export const EXIT_TRY_AGAIN = 75;
/** The configuration, credentials or this machine's setup do not allow it; repeating changes nothing. */
export const EXIT_CONFIG = 78;
/** 128 + SIGINT: asked twice to stop, and did not wait for the rest. */
export const EXIT_INTERRUPTED = 130;
