/** Whether programs of others are here. */
import { accessSync, constants } from "node:fs";
import { delimiter, join } from "node:path";

/** `path`: as in PATH, where an empty part is the present folder. `more`: folders besides. */
export function hasProgram(program: string, path: string, more: readonly string[] = []): boolean {
  return [...path.split(delimiter), ...more].some((folder) => isExecutable(join(folder || ".", program)));
}

function isExecutable(path: string): boolean {
  try {
    accessSync(path, constants.X_OK);
    return true;
  } catch {
    return false;
  }
}
