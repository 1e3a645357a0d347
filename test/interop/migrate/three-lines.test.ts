/** The three lines of the manual, as an operator types them, on two hosts that are two folders here. */
import { delimiter, dirname } from "node:path";
import { expect, test } from "vitest";
import { BLOCKFERRY, type Folder, makeFolder, type Outcome, run } from "../cli/harness.ts";

const SIZE = 4 * 1024 * 1024;

class Host implements Disposable {
  readonly folder: Folder = makeFolder();

  sh(line: string): Outcome {
    const { path } = this.folder;
    const env = {
      PATH: [dirname(BLOCKFERRY), process.env["PATH"]].join(delimiter),
      BLOCKFERRY_RUNTIME_DIR: this.folder.at("run"),
      BLOCKFERRY_STATE_DIR: this.folder.at("state"),
    };
    return run("/bin/sh", ["-c", line], { cwd: path, env });
  }

  /** Must succeed: what it prints. */
  ok(line: string): string {
    const { code, stdout, stderr } = this.sh(line);
    expect({ line, code, stderr }).toEqual({ line, code: 0, stderr: "" });
    return stdout;
  }

  [Symbol.dispose](): void {
    this.sh("blockferry quit");
    this.folder[Symbol.dispose]();
  }
}

test("three lines move a disk: source, dest as it is printed, and switchover", () => {
  using a = new Host();
  using b = new Host();
  a.ok(`head -c ${SIZE} /dev/urandom > disk.raw && cp disk.raw before.raw`);
  a.ok("blockferry key k.psk");
  b.ok(`cp -p ${a.folder.at("k.psk")} .`);

  const printed = a
    .ok("blockferry source vda=disk.raw --link 127.0.0.1:0 --tls-psk k.psk --fork")
    .trimEnd()
    .split("\n");
  expect(printed).toEqual([
    `nbd+unix:///vda?socket=${a.folder.at("run")}/source-vda.sock`,
    expect.stringMatching(/^blockferry dest 127\.0\.0\.1:[0-9]+ vda=disk\.raw --tls-psk k\.psk$/),
  ]);
  expect(a.ok("blockferry status")).toContain(`next: on the other host: ${printed[1]}`);
  expect(b.ok(`${printed[1]} --fork`)).toBe(`nbd+unix:///vda?socket=${b.folder.at("run")}/dest-vda.sock\n`);

  const rehearsed = a.ok("blockferry wait --for=ready && blockferry switchover --dry-run");
  expect(rehearsed).toContain("would be done");
  expect(b.ok("blockferry switchover --wait")).toContain("the destination has the disks");
  b.ok("blockferry wait --for=complete --timeout 60s");
  expect(b.ok("blockferry status")).toContain("next: the images stand alone: the source may go");
  expect(b.ok("blockferry missing")).toBe("");
  expect(a.ok("blockferry status --raw")).toContain("phase=released");
  expect(a.sh("blockferry pause").code).toBe(1);
  a.ok("blockferry quit");
  b.ok("blockferry quit");
  expect(b.ok(`cmp disk.raw ${a.folder.at("before.raw")}`)).toBe("");
  expect(a.sh("blockferry serve disk.raw").code).toBe(75);
});

test("an operator who asks too early, or on the wrong side, is told what to do", () => {
  using a = new Host();
  a.ok(`head -c ${SIZE} /dev/urandom > disk.raw`);
  a.ok("blockferry source vda=disk.raw --link 127.0.0.1:0 --fork");
  const early = a.sh("blockferry switchover");
  expect(early.code).toBe(75);
  expect(early.stderr).toContain("not ready");
  expect(a.sh("blockferry switchover --dry-run").code).toBe(2);
  const nothing = a.sh("blockferry reclaim --destination-is-fenced");
  expect(nothing.code).toBe(75);
  expect(nothing.stderr).toContain("nothing to reclaim");
  const twice = a.sh("blockferry source vda=disk.raw --link 127.0.0.1:0 --unix other.sock");
  expect(twice.code).toBe(75);
  expect(a.sh("blockferry source --link 127.0.0.1:0").code).toBe(64);
  expect(a.sh("blockferry source vda=disk.raw").stderr).toContain("--link");
  expect(a.sh("blockferry dest 127.0.0.1:1 vda=new.raw,backing=disk.raw").code).toBe(64);
});
