import { CliError } from "../../../src/cli/cli-error.ts";

/** What a user would be told of the error that `action` throws. */
export function errorOf(action: () => unknown): CliError["parts"] {
  try {
    action();
  } catch (error) {
    if (error instanceof CliError) return error.parts;
    throw error;
  }
  throw new Error("nothing was thrown");
}
