/** What a migration refuses, as errors of the command line and of the control socket. */
import { ControlError } from "../../control/errors.ts";
import { MigrationError } from "../../migrate/errors.ts";
import { qmpProblem } from "./qmp.ts";

/** Runs a verb's work; what the migration or QEMU refuses keeps its code, its reason and its advice. */
export async function asVerb<T>(work: Promise<T>): Promise<T> {
  try {
    return await work;
  } catch (error) {
    if (error instanceof MigrationError) throw new ControlError(error.code, error.message, error.hint);
    const problem = qmpProblem(error);
    throw problem === undefined ? error : new ControlError(`qmp-${problem.code}`, problem.message, problem.hint);
  }
}
