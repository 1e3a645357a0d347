import { describe, expect, test } from "vitest";
import type { BlockErrorCode } from "../../../../src/block/error.ts";
import { blockErrorCodeOf, nbdErrnoOf } from "../../../../src/nbd/errno.ts";
import { CMD, ERR, FLAG } from "../../../support/nbd-wire.ts";

const COMMANDS = [CMD.READ, CMD.WRITE, CMD.FLUSH, CMD.TRIM, CMD.CACHE, CMD.WRITE_ZEROES, CMD.BLOCK_STATUS];
const ALL_FLAGS = [0, ...Object.values(FLAG)];

/** What each failure is on the wire, for every command and flag; exceptions are listed beside it. */
const GENERAL: Readonly<Record<BlockErrorCode, number>> = {
  io: ERR.EIO,
  "no-memory": ERR.ENOMEM,
  "read-only": ERR.EPERM,
  permission: ERR.EPERM,
  invalid: ERR.EINVAL,
  "shutting-down": ERR.ESHUTDOWN,
  "no-space": ERR.EIO,
  "out-of-range": ERR.EINVAL,
  "not-supported": ERR.EINVAL,
  "too-big": ERR.EINVAL,
};
const EXCEPTIONS: readonly [BlockErrorCode, number, (command: number, flags: number) => boolean][] = [
  ["no-space", ERR.ENOSPC, (command) => command === CMD.WRITE || command === CMD.WRITE_ZEROES],
  ["out-of-range", ERR.ENOSPC, (command) => command === CMD.WRITE || command === CMD.WRITE_ZEROES],
  ["not-supported", ERR.ENOTSUP, (command, flags) => command === CMD.WRITE_ZEROES && (flags & FLAG.FAST_ZERO) !== 0],
  ["too-big", ERR.EOVERFLOW, (command, flags) => command === CMD.READ && (flags & FLAG.DF) !== 0],
];

describe("failures of a device become numbers of the protocol", () => {
  for (const code of Object.keys(GENERAL) as BlockErrorCode[]) {
    test(`"${code}"`, () => {
      for (const command of COMMANDS) {
        for (const flags of ALL_FLAGS) {
          const exception = EXCEPTIONS.find(([of, , when]) => of === code && when(command, flags));
          expect([command, flags, nbdErrnoOf(code, command, flags)]).toEqual([
            command,
            flags,
            exception?.[1] ?? GENERAL[code],
          ]);
        }
      }
    });
  }
});

test("a number from a server becomes the failure it means, and an unknown one counts as invalid", () => {
  const meanings: Readonly<Record<number, BlockErrorCode>> = {
    [ERR.EPERM]: "permission",
    [ERR.EIO]: "io",
    [ERR.ENOMEM]: "no-memory",
    [ERR.ENOSPC]: "no-space",
    [ERR.EOVERFLOW]: "too-big",
    [ERR.ENOTSUP]: "not-supported",
    [ERR.ESHUTDOWN]: "shutting-down",
  };
  for (let errno = 1; errno < 200; errno++) expect(blockErrorCodeOf(errno)).toBe(meanings[errno] ?? "invalid");
  expect(blockErrorCodeOf(0xffff_ffff)).toBe("invalid");
});
