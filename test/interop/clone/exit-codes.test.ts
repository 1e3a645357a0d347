/** The table of exit codes in docs/CLI.md, row by row, for what `clone` may meet and no other test of it meets. */
import { mkdirSync, writeFileSync } from "node:fs";
import { describe, expect } from "vitest";
import { placeIn, uriOf } from "../../support/clone-checks.ts";
import { runClone } from "../../support/clone-process.ts";
import { makeImage } from "../../support/patterns.ts";
import { type Peer, qemuNbd } from "../../support/peers.ts";
import { type RunResult, run } from "../../support/run.ts";
import { BLOCKFERRY } from "../../support/serve-process.ts";
import { type TempDir, tempDir } from "../../support/temp-dir.ts";
import { itWith } from "../../support/tools.ts";
import { MiB } from "../serve/layout.ts";

interface Row {
  readonly what: string;
  readonly status: number;
  readonly why: RegExp;
  readonly flags?: (folder: TempDir) => readonly string[];
  readonly image?: (folder: TempDir) => string;
  readonly source?: (peer: Peer) => string;
}

const ROWS: readonly Row[] = [
  {
    what: "no such folder for the image",
    status: 74,
    why: /there is no folder .*nowhere\n.*create the folder/,
    image: (folder) => folder.file("nowhere/copy.raw"),
  },
  {
    what: "a file where the image's folder should be",
    status: 74,
    why: /mine is no folder/,
    image: (folder) => folder.file("mine/copy.raw"),
  },
  { what: "a folder as the image", status: 74, why: /it is a directory/, image: (folder) => folder.file("") },
  { what: "a character device", status: 74, why: /neither a regular file/, image: () => "/dev/null" },
  {
    what: "a PID file in no folder",
    status: 74,
    why: /PID file/,
    flags: (folder) => ["-P", folder.file("nowhere/pid")],
  },
  {
    what: "a trace that cannot be recorded",
    status: 74,
    why: /cannot record a trace/,
    flags: (folder) => ["--record-trace", folder.file("nowhere/trace")],
  },
  {
    what: "a trace that is none",
    status: 74,
    why: /cannot replay the trace/,
    flags: (folder) => ["--replay-trace", folder.file("mine")],
  },
  {
    what: "a format that no copy has",
    status: 64,
    why: /no image format called "vmdk"/,
    flags: () => ["--format=vmdk"],
  },
  {
    what: "an export that is not there",
    status: 69,
    why: /cannot negotiate|no export|not have/,
    source: (peer) => uriOf(peer, "other"),
  },
  {
    what: "a source without the TLS that was asked for",
    status: 78,
    why: /TLS/,
    source: (peer) => uriOf(peer).replace("nbd+unix", "nbds+unix"),
  },
  {
    what: "credentials that are not there",
    status: 78,
    why: /it is not there/,
    source: (peer) => `${uriOf(peer).replace("nbd+unix", "nbds+unix")}&tls-psk-file=/nowhere/psk`,
  },
  {
    what: "a control socket in no folder",
    status: 78,
    why: /control socket/,
    flags: (folder) => ["-C", folder.file("nowhere/c.ctl")],
  },
];

function refused(outcome: RunResult, status: number, why: RegExp): void {
  expect(outcome.stderr).toMatch(why);
  expect(outcome.stderr).toMatch(/^blockferry: .+\n {2}why: .+\n {2}do: {2}.+\n$/m);
  expect(outcome.status).toBe(status);
}

describe("clone refuses", () => {
  for (const { what, status, why, flags, image, source } of ROWS) {
    itWith(["qemu-nbd"], `${what}: ${status}`, async () => {
      using folder = tempDir();
      await using peer = await qemuNbd((path) => makeImage(path, MiB), "-r");
      writeFileSync(folder.file("mine"), "something that is mine");
      const place = placeIn(folder, source === undefined ? uriOf(peer) : source(peer));
      refused(
        await runClone({
          ...place,
          image: image?.(folder) ?? place.image,
          flags: ["--exit-when-hydrated", ...(flags?.(folder) ?? [])],
        }),
        status,
        why,
      );
    });
  }

  itWith(["qemu-nbd", "setpriv"], "a folder that we may not write to: 74", async () => {
    using folder = tempDir();
    await using peer = await qemuNbd((path) => makeImage(path, MiB), "-r");
    const place = placeIn(folder, peer);
    mkdirSync(folder.file("shut"), { mode: 0o555 });
    // Root may write everywhere, unless that is taken from it.
    const asAnybody = process.getuid?.() === 0 ? ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] : [];
    const clone = [BLOCKFERRY, "clone", "-U", place.socket, "-C", folder.file("c.ctl"), place.source];
    refused(await run([...asAnybody, ...clone, folder.file("shut/copy.raw")]), 74, /may not be written to by us/);
  });
});
