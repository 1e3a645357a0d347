/** Raw images in real files, as a conformance target. Power cannot be cut under them, and their syncs do not fail. */
import { closeSync, ftruncateSync, openSync, writeFileSync } from "node:fs";
import type { ConformanceTarget, WantedDevice } from "../../src/block/conformance/rule.ts";
import type { Env } from "../../src/env/env.ts";
import { openRaw } from "../../src/image/raw.ts";
import type { TempDir } from "./temp-dir.ts";

/** Every device gets a file of its own in `folder`. */
export function realRawTarget(env: Pick<Env, "files">, folder: TempDir): ConformanceTarget {
  let made = 0;
  return {
    async make(wanted) {
      made += 1;
      const path = folder.file(`${made}.raw`);
      makeFile(path, wanted);
      return openRaw(env, { path, readOnly: wanted.readOnly ?? false });
    },
  };
}

/** A file that holds `content`, or a hole. */
export function makeFile(path: string, { sizeBytes, content }: WantedDevice): void {
  const fd = openSync(path, "w");
  ftruncateSync(fd, sizeBytes);
  if (content !== undefined) writeFileSync(fd, content);
  closeSync(fd);
}
