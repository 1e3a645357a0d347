/** What `print` prints, given to those whose text it is. */
import { writeFileSync } from "node:fs";
import { expect, test } from "vitest";
import { runOk, run as runTool } from "../../support/run.ts";
import { BLOCKFERRY as SERVE, startServe } from "../../support/serve-process.ts";
import { itWith, PYTHON } from "../../support/tools.ts";
import { BLOCKFERRY, makeFolder, makeImage, run } from "./harness.ts";

const ORDERS = ["qmp_capabilities", "query-named-block-nodes", "query-status", "quit"];

function printed(...args: string[]): string {
  const { code, stdout, stderr } = run(BLOCKFERRY, ["print", ...args]);
  expect({ code, stderr }).toEqual({ code: 0, stderr: "" });
  return stdout;
}

itWith(
  ["qemu-system-x86_64"],
  "QEMU takes the arguments from a shell, opens the disk, and waits for a guest",
  async () => {
    using folder = makeFolder();
    const socket = folder.at("it's a socket");
    await using server = await startServe({ image: makeImage(folder), socket, flags: ["-x", "vda"] });
    expect(SERVE).toBe(BLOCKFERRY);
    const uri = server.uriOf("vda").replace(socket, encodeURIComponent(socket));
    const words = printed("qemu", uri, "--incoming", "--stop-on-error", "--qmp", folder.at("q,mp"));
    const script = `qemu-system-x86_64 -nodefaults -no-user-config -display none -accel tcg -qmp stdio ${words}`;
    const input = ORDERS.map((execute) => JSON.stringify({ execute })).join("\n");
    const { status, stdout, stderr } = await runTool(["/bin/sh", "-c", script], { input });
    expect({ status, stderr }).toEqual({ status: 0, stderr: "" });
    expect(stdout).toContain('"node-name": "vda"');
    expect(stdout).toContain('"status": "inmigrate"');
  },
);

itWith(["systemd-analyze"], "systemd finds nothing wrong with a unit, whatever the names of files", async () => {
  using folder = makeFolder();
  const unit = folder.at("blockferry-test.service");
  for (const words of [
    ["source", "vda=/vm/50% a$b \"c\" \\d 'e'.raw", "--link", "127.0.0.1:7000"],
    ["serve", "-p", "10809", "disk.raw"],
  ]) {
    writeFileSync(unit, printed("systemd", "--", ...words));
    const { stdout, stderr, status } = await runTool(["systemd-analyze", "verify", unit], {});
    expect({ status, said: (stdout + stderr).split("\n").filter((line) => line.includes("blockferry-test")) }).toEqual({
      status: 0,
      said: [],
    });
  }
});

itWith(["python3"], "libvirt's elements are XML that says what the URI says", async () => {
  const xml = printed("libvirt", "nbd+unix:///vda?socket=/run/a%27%3C%26.sock", "nbds://host:7/b", "--stop-on-error");
  const parse = [
    "import sys, json, xml.etree.ElementTree as E",
    "disks = E.fromstring('<d>' + sys.stdin.read() + '</d>')",
    "print(json.dumps([[d.find('source').attrib, d.find('source/host').attrib, d.find('target').attrib] for d in disks]))",
  ].join("\n");
  expect(JSON.parse(await runOk([PYTHON, "-c", parse], { input: xml }))).toEqual([
    [
      { protocol: "nbd", name: "vda" },
      { transport: "unix", socket: "/run/a'<&.sock" },
      { dev: "vda", bus: "virtio" },
    ],
    [
      { protocol: "nbd", name: "b", tls: "yes" },
      { name: "host", port: "7" },
      { dev: "vdb", bus: "virtio" },
    ],
  ]);
});

test("what cannot be printed is refused with a reason", () => {
  for (const [args, why] of [
    [["qemu", "http://host/"], /bad NBD URI/],
    [["qemu", "nbds://host/x?tls-psk-file=/k/my.psk"], /file called keys\.psk/],
    [["systemd", "--", "status"], /no command that runs on/],
    [["systemd", "--", "serve", "--fork", "disk.raw"], /needs no --fork/],
    [["systemd", "--", "serve", "a\nb"], /line break/],
  ] as const) {
    const { code, stdout, stderr } = run(BLOCKFERRY, ["print", ...args]);
    expect({ code, stdout }).toEqual({ code: 64, stdout: "" });
    expect(stderr).toMatch(why);
  }
});
