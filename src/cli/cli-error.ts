/** Errors as users and scripts get them: what happened, why, and what to do about it. */
import { BlockError } from "../block/error.ts";
import { OverlayRefusedError } from "../cor/errors.ts";
import { FileError } from "../env/files.ts";
import { ImageOpenError } from "../image/errors.ts";
import { MigrationError, type MigrationErrorCode } from "../migrate/errors.ts";
import { NbdConnectError } from "../nbd/client/errors.ts";
import { TlsError } from "../os/tls-error.ts";
import {
  EXIT_CONFIG,
  EXIT_FAILURE,
  EXIT_IO,
  EXIT_NO,
  EXIT_TRY_AGAIN,
  EXIT_UNAVAILABLE,
  EXIT_USAGE,
} from "./exit-codes.ts";
import { printable, printableJson } from "./printable.ts";

export interface CliErrorParts {
  readonly exitCode: number;
  /** A stable word for scripts: "usage", "locked", "not-found", … */
  readonly code: string;
  readonly what: string;
  readonly why: string;
  readonly hint: string;
}

export class CliError extends Error {
  override readonly name = "CliError";
  readonly parts: CliErrorParts;

  constructor(parts: CliErrorParts, options?: ErrorOptions) {
    super(`${parts.what}: ${parts.why}`, options);
    this.parts = parts;
  }
}

/** A command line, setting or combination of them that makes no sense. */
export function usageError(what: string, why: string, hint: string): CliError {
  return new CliError({ exitCode: EXIT_USAGE, code: "usage", what, why, hint });
}

/** The three lines for people, or one line of JSON for programs. Ends with a newline. */
export function renderError(error: CliError, json: boolean): string {
  const { code, what, why, hint } = error.parts;
  if (json) return `${printableJson({ code, message: `${what}: ${why}`, hint })}\n`;
  return [`blockferry: ${what}`, `  why: ${why}`, `  do:  ${hint}`].map((line) => `${printable(line)}\n`).join("");
}

/** Turns whatever was thrown into an error with an exit code. A bug keeps its stack, as the reason. */
export function toCliError(error: unknown): CliError {
  if (error instanceof CliError) return error;
  // Cleaning up failed as well. What went wrong first is what has to be told. (By name: Node 22 has no such class.)
  if (error instanceof Error && error.name === "SuppressedError") {
    return toCliError((error as Error & { suppressed: unknown }).suppressed);
  }
  if (error instanceof ImageOpenError) return fromImageError(error);
  if (error instanceof TlsError) {
    const hint = error.hint ?? "see the TLS options in `blockferry serve --help`";
    return new CliError(
      { exitCode: EXIT_CONFIG, code: `tls-${error.code}`, what: error.what, why: error.why, hint },
      { cause: error },
    );
  }
  if (error instanceof OverlayRefusedError) return fromOverlayRefusal(error);
  if (error instanceof MigrationError) return fromMigration(error);
  if (error instanceof NbdConnectError) return fromConnectError(error);
  if (error instanceof FileError) return fromFileError(error);
  if (error instanceof BlockError) return fromBlockError(error);
  const why = error instanceof Error ? (error.stack ?? error.message) : String(error);
  const hint = "this is a defect of blockferry; please report it with these lines";
  return new CliError(
    { exitCode: EXIT_FAILURE, code: "bug", what: "internal error", why: why.replaceAll(/\s*\n\s*/g, " | "), hint },
    { cause: error },
  );
}

function fromImageError(error: ImageOpenError): CliError {
  const usage = error.code === "unknown-format" || error.code === "unsupported-format";
  const exitCode = error.code === "locked" ? EXIT_TRY_AGAIN : usage ? EXIT_USAGE : EXIT_IO;
  const { code, path, why, hint } = error;
  return new CliError({ exitCode, code, what: `cannot ${error.doing} ${path}`, why, hint }, { cause: error });
}

function fromOverlayRefusal(error: OverlayRefusedError): CliError {
  const { code, message, hint, cause } = error;
  const isLocked = cause instanceof FileError && cause.code === "EAGAIN";
  const exitCode = isLocked || code === "exists" ? EXIT_TRY_AGAIN : EXIT_IO;
  const what = "cannot use the overlay";
  return new CliError({ exitCode, code: isLocked ? "locked" : code, what, why: message, hint }, { cause: error });
}

/** Of each refusal of a migration. */
export const MIGRATION_EXITS: Readonly<Record<MigrationErrorCode, number>> = {
  "owned-elsewhere": EXIT_TRY_AGAIN,
  "bad-record": EXIT_IO,
  phase: EXIT_TRY_AGAIN,
  "not-connected": EXIT_UNAVAILABLE,
  peer: EXIT_UNAVAILABLE,
  written: EXIT_NO,
  cancelled: EXIT_NO,
  io: EXIT_IO,
  closed: EXIT_UNAVAILABLE,
};

const MIGRATION_WHATS: Readonly<Partial<Record<MigrationErrorCode, string>>> = {
  "owned-elsewhere": "cannot use the disk",
  "bad-record": "cannot tell whose the disk is",
  io: "cannot record whose the disk is",
};

function fromMigration(error: MigrationError): CliError {
  const { code, message: why, hint } = error;
  const what = MIGRATION_WHATS[code] ?? "the migration failed";
  return new CliError({ exitCode: MIGRATION_EXITS[code], code, what, why, hint }, { cause: error });
}

/** A server that we are a client of. */
function fromConnectError(error: NbdConnectError): CliError {
  const { code, what, why, hint } = error;
  const isConfig = code === "tls-required" || code === "tls-unavailable" || code === "tls-failed";
  return new CliError({ exitCode: isConfig ? EXIT_CONFIG : EXIT_UNAVAILABLE, code, what, why, hint }, { cause: error });
}

/** Reading or writing an image or disk failed in the middle of the work. */
function fromBlockError(error: BlockError): CliError {
  const hint = "look at the kernel log of this host; for an image with tables, try `blockferry image check`";
  const { code, message: why } = error;
  return new CliError({ exitCode: EXIT_IO, code, what: "an image or disk failed", why, hint }, { cause: error });
}

/** For listening; images bring their own errors. */
function fromFileError(error: FileError): CliError {
  const [exitCode, hint] = FILE_HINTS[error.code] ?? [EXIT_IO, "look at the kernel log of this host"];
  const [what = "", ...rest] = error.message.split(": ");
  const why = rest.join(": ") || error.code;
  return new CliError({ exitCode, code: error.code, what, why, hint }, { cause: error });
}

const FILE_HINTS: Readonly<Record<string, readonly [number, string]>> = {
  EADDRINUSE: [
    EXIT_TRY_AGAIN,
    "stop whoever listens there, or choose another socket or port (`-p 0` takes a free one)",
  ],
  EADDRNOTAVAIL: [EXIT_CONFIG, "no interface of this host has that address: correct --bind"],
  ENOTFOUND: [EXIT_CONFIG, "the name does not resolve: correct --bind, or give an address"],
  EACCES: [EXIT_CONFIG, "check the permissions of the folder; ports below 1024 need privileges"],
  ENOENT: [EXIT_CONFIG, "the folder does not exist: create it first"],
  EEXIST: [EXIT_CONFIG, "remove what is there, or choose another path"],
  ENOTSOCK: [EXIT_CONFIG, "socket activation has to hand over listening stream sockets"],
  EINVAL: [EXIT_CONFIG, "socket activation has to hand over listening stream sockets (Accept=no)"],
  ENOSPC: [EXIT_IO, "make room on that file system"],
};
