/** What an instance refused, or how it fell silent, as an error with an exit code. */
import { ControlError, type ControlErrorCode, ControlProtocolError } from "../../control/errors.ts";
import { CliError, MIGRATION_EXITS } from "../cli-error.ts";
import { EXIT_FAILURE, EXIT_NO, EXIT_TRY_AGAIN, EXIT_UNAVAILABLE, EXIT_USAGE } from "../exit-codes.ts";

const EXIT_BY_CODE: Readonly<Record<string, number | undefined>> = {
  ...MIGRATION_EXITS,
  writers: EXIT_TRY_AGAIN,
  "qmp-taken": EXIT_TRY_AGAIN,
  "qmp-state": EXIT_TRY_AGAIN,
  "qmp-closed": EXIT_UNAVAILABLE,
  "qmp-timeout": EXIT_UNAVAILABLE,
  "qmp-limit": EXIT_UNAVAILABLE,
  "bad-params": EXIT_USAGE,
  "unknown-verb": EXIT_USAGE,
  "unknown-disk": EXIT_USAGE,
  "several-disks": EXIT_USAGE,
  never: EXIT_USAGE,
  closing: EXIT_NO,
  closed: EXIT_UNAVAILABLE,
  timeout: EXIT_UNAVAILABLE,
  busy: EXIT_UNAVAILABLE,
};

const HINTS: Readonly<Partial<Record<ControlErrorCode, string>>> = {
  "bad-params": "see `blockferry VERB --help`; the instance may be of another version",
  closing: "the instance has been told to stop",
  closed: "the instance has ended, or turned us away; look at its log",
  timeout: "the instance is alive and does not answer; look at its log",
};

/** `error` as a `CliError` when it came from a control socket; unchanged otherwise. */
export function fromControl(verb: string, error: unknown): unknown {
  const what = `\`${verb}\` failed`;
  if (error instanceof ControlProtocolError) {
    const hint = "use the same version of blockferry on both ends of the control socket";
    return new CliError(
      { exitCode: EXIT_UNAVAILABLE, code: "protocol", what, why: error.message, hint },
      { cause: error },
    );
  }
  if (!(error instanceof ControlError)) return error;
  const code = error.code as ControlErrorCode;
  const exitCode = EXIT_BY_CODE[code] ?? EXIT_FAILURE;
  const hint = error.hint ?? HINTS[code] ?? "see `blockferry status`";
  return new CliError({ exitCode, code, what, why: error.message, hint }, { cause: error });
}
