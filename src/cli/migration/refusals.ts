/** What a migration refuses, as errors of the command line and of the control socket. */
import { ControlError } from "../../control/errors.ts";
import { MigrationError } from "../../migrate/errors.ts";

/** Runs a verb's work; what the migration refuses keeps its code, its reason and its advice. */
export async function asVerb<T>(work: Promise<T>): Promise<T> {
  try {
    return await work;
  } catch (error) {
    throw error instanceof MigrationError ? new ControlError(error.code, error.message, error.hint) : error;
  }
}
