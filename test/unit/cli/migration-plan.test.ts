/** What `source` and `dest` make of their command lines. */
import { describe, expect, test } from "vitest";
import { type DestFlags, planDest } from "../../../src/cli/dest/plan.ts";
import { destLine, planSource, type SourceFlags } from "../../../src/cli/source/plan.ts";
import { errorOf } from "./error-of.ts";

const AROUND = { directory: "/work", inherited: [], env: { BLOCKFERRY_RUNTIME_DIR: "/run/bf" }, uid: 0 };

function source(words: readonly string[], flags: SourceFlags = { link: "127.0.0.1:7000" }) {
  return planSource(words, flags, AROUND);
}

function dest(words: readonly string[], flags: DestFlags = {}) {
  return planDest(words, flags, AROUND);
}

function told(action: () => unknown): string {
  const { exitCode, what, why, hint } = errorOf(action);
  expect(exitCode).toBe(64);
  return [what, why, hint].join("\n");
}

describe("the source", () => {
  test("takes its disks from arguments and flags alike, with formats and what they lie over", () => {
    const { disks } = source(["vdb=b.qcow2,backing=base.raw"], {
      link: "127.0.0.1:7000",
      disk: ["vda=/vm/a,format=raw"],
    });
    expect(disks.map(({ name, chain }) => [name, chain])).toEqual([
      ["vda", [{ path: "/vm/a", format: "raw" }]],
      ["vdb", [{ path: "/work/b.qcow2" }, { path: "/work/base.raw" }]],
    ]);
  });

  test("listens for its guest in the runtime directory, unless it is told where", () => {
    expect(source(["vda=a", "vdb=b"]).serve.listen).toEqual({ kind: "unix", path: "/run/bf/source-vda+vdb.sock" });
    const chosen = source(["vda=a"], { link: "127.0.0.1:7000", port: 0 });
    expect(chosen.serve.listen).toEqual({ kind: "tcp", host: "127.0.0.1", port: 0 });
  });

  test("prints a line that a shell takes as it is", () => {
    const flags = { link: "[::1]:7000", tlsPsk: "my key.psk", tunnel: ["ram=unix:/run/ram.sock"] };
    const plan = source(["vda=/vm/it's.raw", "vdb=b.qcow2,backing=base.raw"], flags);
    expect(destLine(plan, plan.link)).toBe(
      "blockferry dest '[::1]:7000' 'vda=/vm/it'\\''s.raw' vdb=b.qcow2 --tls-psk 'my key.psk' --tunnel ram=unix:/run/ram.sock",
    );
  });

  test("finds QEMU's monitor, and lets memory go beside it", () => {
    const { qmp } = source(["vda=a"], { link: "127.0.0.1:1", qmp: "unix:vm.qmp" });
    expect(qmp).toEqual({
      address: { kind: "unix", path: "/work/vm.qmp" },
      memoryPath: "/work/vm.qmp.ram",
      memoryUri: "unix:/work/vm.qmp.ram",
    });
    const plan = source(["vda=a"], { link: "127.0.0.1:7000", qmp: "/run/vm.qmp" });
    expect(destLine(plan, plan.link)).toBe("blockferry dest 127.0.0.1:7000 vda=a --qmp /run/vm.qmp");
    expect(source(["vda=a"]).qmp).toBeUndefined();
  });

  test("has a state directory that follows from its disks, and from nothing else", () => {
    const of = (...words: string[]) => source(words).stateDirectory;
    expect(of("vda=a")).toMatch(/^\/var\/lib\/blockferry\/source-vda-[0-9a-f]{12}$/);
    expect(of("vda=a")).toBe(source(["vda=/work/a,format=raw"], { link: "unix:/l" }).stateDirectory);
    expect(of("vda=a")).not.toBe(of("vda=b"));
  });

  test.each<[string[], SourceFlags, RegExp]>([
    [[], { link: "127.0.0.1:1" }, /no disk/],
    [["disk.raw"], { link: "127.0.0.1:1" }, /NAME=IMAGE/],
    [["a/b=disk.raw"], { link: "127.0.0.1:1" }, /NAME=IMAGE/],
    [["vda="], { link: "127.0.0.1:1" }, /IMAGE is empty/],
    [["vda=a", "vda=b"], { link: "127.0.0.1:1" }, /vda is named twice/],
    [["vda=a", "vdb=a"], { link: "127.0.0.1:1" }, /a is named twice/],
    [["vda=a"], {}, /--link is missing/],
    [["vda=a"], { link: "7000" }, /no address of a link/],
    [["vda=a"], { link: "host:70000" }, /no address of a link/],
    [["vda=a"], { link: "192.0.2.1:7000" }, /without TLS/],
    [["vda=a"], { link: "127.0.0.1:1", bind: "0.0.0.0", port: 1 }, /without TLS|this host alone/],
    [["vda=a"], { link: "127.0.0.1:1", tunnel: ["ram"] }, /NAME=unix:PATH/],
    [["vda=a"], { link: "127.0.0.1:1", tunnel: ["r=unix:/a", "r=unix:/b"] }, /same name/],
    [["vda=a"], { link: "127.0.0.1:1", tunnel: ["qemu.memory=unix:/a"] }, /a tunnel of --qmp/],
    [["vda=a"], { link: "127.0.0.1:1", qmp: "" }, /no path for a socket/],
    [["vda=a"], { link: "127.0.0.1:1", lateOpen: true }, /add --qmp/],
    [["vda=a"], { link: "127.0.0.1:1", lateOpen: true, qmp: "q", unix: "s" }, /nothing is served/],
    [["vda=a"], { link: "127.0.0.1:1", qmp: `/${"x".repeat(103)}` }, /too long/],
  ])("refuses %j with %j", (words, flags, message) => {
    expect(told(() => source(words, flags))).toMatch(message);
  });

  test("beyond this host takes a key, certificates of both sides, or an operator who insists", () => {
    const link = "192.0.2.1:7000";
    expect(source(["vda=a"], { link, tlsPsk: "k" }).tls).toMatchObject({ mode: "require" });
    const x509 = source(["vda=a"], { link, tlsCertificates: "pki" }).tls;
    expect(x509).toMatchObject({ mode: "require", credentials: { verifyPeer: true } });
    expect(source(["vda=a"], { link, insecure: true }).tls.mode).toBe("off");
  });
});

describe("the destination", () => {
  test("takes the source's address first, or from a flag", () => {
    const wanted = { kind: "tcp", host: "127.0.0.1", port: 7000 };
    expect(dest(["127.0.0.1:7000", "vda=a.raw"]).from).toEqual(wanted);
    const plan = dest(["vda=a.raw"], { from: "127.0.0.1:7000" });
    expect([plan.from, plan.images.map(({ image }) => image)]).toEqual([wanted, ["/work/a.raw"]]);
  });

  test("makes images of the format that is named, or that the extension says", () => {
    const plan = dest(["unix:/l", "vda=a.qcow2", "vdb=b,format=qed", "vdc=c"]);
    expect(plan.images.map(({ format }) => format.name)).toEqual(["qcow2", "qed", "raw"]);
  });

  test("lets reads fail for a VMM that pauses its guest then", () => {
    expect(dest(["unix:/l", "vda=a"], { onSourceLoss: "pause" })).toMatchObject({
      onSourceLoss: "eio",
      sourceLossDeadlineMs: 30_000,
    });
    expect(dest(["unix:/l", "vda=a"])).toMatchObject({ onSourceLoss: "stall", sourceLossDeadlineMs: undefined });
  });

  test.each<[string[], DestFlags, RegExp]>([
    [[], {}, /address is missing/],
    [["vda=a"], {}, /no disk|no address/],
    [["unix:/l", "vda=a,backing=b"], {}, /lies over nothing/],
    [["unix:/l", "vda=a"], { sourceLossDeadline: 5 }, /--on-source-loss/],
    [["192.0.2.1:1", "vda=a"], {}, /without TLS/],
  ])("refuses %j with %j", (words, flags, message) => {
    expect(told(() => dest(words, flags))).toMatch(message);
  });
});
