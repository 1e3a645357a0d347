import { spawnSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { describe, expect } from "vitest";
import { makeImage } from "../../support/patterns.ts";
import { tempDir } from "../../support/temp-dir.ts";
import { itWith } from "../../support/tools.ts";

const victim = fileURLToPath(new URL("sync-victim.ts", import.meta.url));

/** What the victim says while the kernel fails as told, and how often it was asked what is traced. */
function run(...injections: string[]): { said: string[]; calls: string[] } {
  using folder = tempDir();
  const [image, log] = [folder.file("image"), folder.file("log")];
  makeImage(image, 65_536);
  const inject = injections.flatMap((injection) => ["-e", `inject=${injection}`]);
  const options = ["-f", "-qq", "-o", log, "-e", "trace=fdatasync,fallocate", ...inject];
  const node = [process.execPath, "--disable-warning=ExperimentalWarning", victim, image];
  const { stdout, stderr } = spawnSync("strace", [...options, ...node], { encoding: "utf8" });
  expect(stderr).toBe("");
  const calls = readFileSync(log, "utf8").match(/(fdatasync|fallocate)\(.*/g) ?? [];
  return { said: stdout.trim().split("\n"), calls };
}

describe("a file whose kernel", () => {
  itWith(["strace"], "fails nothing is durable each time", () => {
    const { said, calls } = run();
    expect(said).toEqual(["durable", "durable", "durable", "punched true"]);
    expect(calls.filter((call) => call.startsWith("fdatasync"))).toHaveLength(3);
  });

  itWith(["strace"], "once failed to sync never asks again, and never says durable", () => {
    const { said, calls } = run("fdatasync:error=EIO:when=1");
    expect(said.slice(0, 3)).toEqual(["FileError EIO", "FileError EIO", "FileError EIO"]);
    expect(calls.filter((call) => call.startsWith("fdatasync"))).toHaveLength(1);
  });

  itWith(["strace"], "is interrupted while it punches a hole is asked again", () => {
    const { said, calls } = run("fallocate:error=EINTR:when=1..2");
    expect(said.at(-1)).toBe("punched true");
    const punches = calls.filter((call) => call.startsWith("fallocate"));
    expect(punches.length).toBeGreaterThan(1);
    expect(punches.at(0)).toContain("EINTR");
    expect(punches.at(-1)).toContain("= 0");
  });

  itWith(["strace"], "cannot punch holes says so", () => {
    expect(run("fallocate:error=EOPNOTSUPP").said.at(-1)).toBe("punched false");
  });
});
