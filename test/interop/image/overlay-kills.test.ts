/** `blockferry clone` into qcow2 and QED, killed at system calls while it begins and while it ends. */
import { describe, expect } from "vitest";
import { placeIn, uriOf } from "../../support/clone-checks.ts";
import { runClone, WITHOUT_LAUNCHER } from "../../support/clone-process.ts";
import { makeImage } from "../../support/patterns.ts";
import { nbdkitIn } from "../../support/peers.ts";
import { run, runOk } from "../../support/run.ts";
import { counts, Prng, runSeed } from "../../support/seed.ts";
import { tempDir } from "../../support/temp-dir.ts";
import { itWith } from "../../support/tools.ts";

const FORMATS = ["qcow2", "qed"] as const;
/** Every other call, or one that the seed draws. */
const EVERY = counts({ local: 0, ci: 1 }) === 1;
const REFUSED = /Could not open backing file: Unknown protocol 'blockferry-unfinished'/;

/** The last call of each name at which a copy is killed; there are so many at least. */
const SWEEPS = [
  ["pwrite64", 12],
  ["fdatasync", 9],
  ["ftruncate", 2],
] as const;

/** Kills a copy at the `nth` call of a name, and looks at what it has left. False: there were not so many calls. */
async function killedCopy(format: string, call: string, nth: number): Promise<boolean> {
  using folder = tempDir();
  const sourceFile = folder.file("source.raw");
  makeImage(sourceFile, 300 * 1024);
  await using source = await nbdkitIn(folder, "-r", "file", sourceFile);
  const place = { ...placeIn(folder, source), image: folder.file(`disk.${format}`), flags: ["--exit-when-hydrated"] };
  const clone = ["clone", "-U", place.socket, "-C", `${place.socket}.ctl`, "--exit-when-hydrated", place.source];
  const inject = ["-e", `trace=${call}`, "-e", `inject=${call}:signal=SIGKILL:when=${nth}`];
  const killed = await run(
    ["strace", "-f", "-qq", "-o", "/dev/null", ...inject, ...WITHOUT_LAUNCHER, ...clone, place.image],
    {
      env: { UV_THREADPOOL_SIZE: "1" },
      timeoutMs: 60_000,
    },
  );
  expect([0, 137], killed.stderr).toContain(killed.status);
  const compare = ["qemu-img", "compare", "-f", format, "-F", "raw", place.image, sourceFile];
  // Either there is nothing, or what is there says that it is unfinished, or it is the whole disk.
  const found = await run(compare);
  const nothing = /Could not open '[^']*': (No such file|Image is too short|.*Could not read|.*not in)|not.*format/;
  if (found.status !== 0) expect(found.stderr).toMatch(new RegExp(`${REFUSED.source}|${nothing.source}`));
  await using again = await nbdkitIn(folder, "-r", "file", sourceFile);
  expect(await runClone({ ...place, source: uriOf(again) })).toMatchObject({ status: 0 });
  expect(await runOk(compare)).toContain("Images are identical");
  expect(await runOk(["qemu-img", "check", "-f", format, place.image])).toContain("No errors were found on the image.");
  return killed.status === 137;
}

describe("a copy that is killed while it is begun, or while it is finished", () => {
  for (const format of FORMATS) {
    for (const [call, last] of SWEEPS) {
      itWith(
        ["strace", "nbdkit", "qemu-img"],
        `leaves nothing, something unfinished, or a whole ${format} image: ${call}`,
        async () => {
          const rng = new Prng(runSeed(), `${format} ${call}`);
          const all = Array.from({ length: last }, (_, i) => i + 1);
          const points = EVERY ? all.filter((nth) => nth % 2 === 1) : [rng.integer(1, last)];
          const done: boolean[] = [];
          for (const nth of points) done.push(await killedCopy(format, call, nth));
          console.info(`${format}, ${call}: ${done.filter(Boolean).length} of ${points.length} were killed`);
          expect(done).not.toContain(false);
        },
        240_000,
      );
    }
  }
});
