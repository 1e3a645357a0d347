/** `image create | info | check | map` and `serve` of chains, beside qemu-img. */
import { copyFileSync, existsSync, openSync, readFileSync, truncateSync, writeFileSync, writeSync } from "node:fs";
import { afterAll, describe, expect, test } from "vitest";
import { itWith } from "../../support/tools.ts";
import { BLOCKFERRY, blockferry, expectError, makeFolder, makeImage, Running, run, waitFor } from "../cli/harness.ts";
import { drawnShapes } from "./amount.ts";

const MIB = 1024 * 1024;
const folder = makeFolder();
let made = 0;

afterAll(() => folder[Symbol.dispose]());

function fresh(name: string): string {
  return folder.at(`${++made}-${name}`);
}

function qemu(args: readonly string[]): string {
  const { code, stdout, stderr } = run("qemu-img", args);
  expect({ code, stderr }, args.join(" ")).toEqual({ code: 0, stderr: "" });
  return stdout;
}

/** A base of a pattern, an image over it, and one over that; each holds something of its own. */
function makeChain(): { spec: string; top: string; mid: string; base: string } {
  const base = makeImage(folder, `${++made}-base.raw`, 3 * MIB);
  const [mid, top] = [fresh("mid.qed"), fresh("top.qcow2")];
  qemu(["create", "-q", "-f", "qed", "-b", base, "-F", "raw", mid, "4M"]);
  qemu(["create", "-q", "-f", "qcow2", "-b", mid, "-F", "qed", top, "5M"]);
  const write = (path: string, commands: readonly string[]): void => {
    const { code } = run("qemu-io", [...commands.flatMap((command) => ["-c", command]), path]);
    expect(code).toBe(0);
  };
  write(mid, ["write -P 17 64k 128k", "write -P 18 3500k 64k"]);
  write(top, ["write -P 19 128k 64k", "write -z 1M 64k", "write -P 20 4200k 64k"]);
  return { spec: `${top},backing=${mid},backing=${base}`, top, mid, base };
}

describe("image create", () => {
  const cases: readonly (readonly [name: string, ours: readonly string[], theirs: readonly string[]])[] = [
    ["a.raw", [], ["-f", "raw"]],
    ["a.qed", [], ["-f", "qed"]],
    ["b.qed", ["-o", "cluster_size=4K,table_size=8"], ["-f", "qed", "-o", "cluster_size=4096,table_size=8"]],
    ["a.qcow2", [], ["-f", "qcow2"]],
    ["b.qcow2", ["-o", "cluster_size=2M,compat=0.10"], ["-f", "qcow2", "-o", "cluster_size=2M,compat=0.10"]],
    ["c.img", ["--format", "qcow2", "-o", "compat=1.1"], ["-f", "qcow2", "-o", "compat=1.1"]],
  ];
  for (const [name, ours, theirs] of drawnShapes(cases, 3)) {
    itWith(["qemu-img"], `makes what qemu-img makes, and says so alike: ${name} ${ours.join(" ")}`, () => {
      const [mine, other] = [fresh(name), fresh(name)];
      const { code, stdout } = blockferry(["image", "create", ...ours, mine, "13M"]);
      expect(code).toBe(0);
      expect(stdout).toBe(qemu(["create", ...theirs, other, "13M"]).replace(other, mine));
      const about = (path: string): unknown => {
        const { "actual-size": _size, ...rest } = JSON.parse(
          qemu(["info", "--output=json", ...theirs.slice(0, 2), path]),
        );
        return { ...rest, filename: "" };
      };
      expect(about(mine)).toEqual(about(other));
      if (!name.endsWith("raw")) qemu(["check", "-q", ...theirs.slice(0, 2), mine]);
    });
  }

  for (const format of ["qcow2", "qed"]) {
    itWith(["qemu-img"], `lays a ${format} image over a backing that was named, and takes its size`, () => {
      const base = makeImage(folder, `${++made}-base.raw`);
      const [mine, other] = [fresh(`over.${format}`), fresh(`over.${format}`)];
      const name = base.slice(base.lastIndexOf("/") + 1);
      const { stdout } = blockferry(["image", "create", "-b", name, "-F", "raw", mine]);
      expect(stdout).toBe(qemu(["create", "-f", format, "-b", name, "-F", "raw", other]).replace(other, mine));
      qemu(["compare", "-f", format, "-F", "raw", mine, base]);
    });
  }

  test("never writes over anything, and leaves nothing behind when it fails", () => {
    const path = fresh("there.qcow2");
    writeFileSync(path, "precious");
    expectError(blockferry(["image", "create", path, "1M"]), 74, /cannot create .*there\.qcow2\n.*such a file already/);
    expect(readFileSync(path, "utf8")).toBe("precious");
    const odd = fresh("odd.qed");
    expectError(blockferry(["image", "create", odd, "1000"]), 74, /cannot create .*\n.*no whole number of sectors/);
    expectError(blockferry(["image", "create", "-o", "cluster_size=3K", odd, "1M"]), 74, /3072 bytes/);
    expect(existsSync(odd)).toBe(false);
  });

  test("wants to know what cannot be guessed", () => {
    const path = fresh("x.qcow2");
    expectError(blockferry(["image", "create", path]), 64, /nobody said how large/);
    expectError(blockferry(["image", "create", "-b", "base.raw", path]), 64, /told the format of its backing/);
    expectError(blockferry(["image", "create", "-b", "no.raw", "-F", "raw", path]), 74, /there is no such file/);
    expectError(blockferry(["image", "create", "-F", "raw", path, "1M"]), 64, /there is no --backing/);
    expectError(
      blockferry(["image", "create", "-o", "table_size=4", path, "1M"]),
      64,
      /qcow2 images have: cluster_size/,
    );
    expect(existsSync(path)).toBe(false);
  });

  test("tells a program in JSON, and nobody with --quiet", () => {
    const path = fresh("j.qed");
    expect(JSON.parse(blockferry(["image", "create", "--json", path, "1M"]).stdout)).toEqual({
      filename: path,
      format: "qed",
      "virtual-size": MIB,
      "cluster-size": 65_536,
    });
    expect(blockferry(["image", "create", "-q", fresh("q.raw"), "1M"])).toEqual({ code: 0, stdout: "", stderr: "" });
  });
});

describe("image check", () => {
  for (const format of ["qcow2", "qed"]) {
    itWith(["qemu-img", "qemu-io"], `reports on a ${format} image as qemu-img check does`, () => {
      const path = fresh(`c.${format}`);
      qemu(["create", "-q", "-f", format, path, "8M"]);
      expect(blockferry(["image", "check", path])).toEqual({ code: 0, stdout: qemu(["check", path]), stderr: "" });
      run("qemu-io", ["-c", "write -P 3 1M 3M", "-c", "write -P 4 128k 64k", path]);
      expect(blockferry(["image", "check", path]).stdout).toBe(qemu(["check", path]));
      const ours = JSON.parse(blockferry(["image", "check", "--json", path]).stdout) as unknown;
      expect(ours).toEqual(JSON.parse(qemu(["check", "--output=json", path])));
    });
  }

  itWith(["qemu-img", "qemu-io"], "finds lost space, says 2, and gives it back when told to", () => {
    const path = fresh("leak.qcow2");
    qemu(["create", "-q", "-f", "qcow2", path, "8M"]);
    run("qemu-io", ["-c", "write -P 3 0 64k", path]);
    // One L2 entry gone: its data cluster is lost space.
    const file = openSync(path, "r+");
    writeSync(file, Buffer.alloc(8), 0, 8, 4 * 65_536);
    const found = blockferry(["image", "check", path]);
    const theirs = run("qemu-img", ["check", path]);
    expect(theirs.code).toBe(3);
    expect(found).toEqual({ code: 2, stdout: theirs.stdout.replace(/^Leaked.*\n/gm, ""), stderr: "" });
    const repaired = blockferry(["image", "check", "-r", "leaks", path]);
    expect(repaired.stdout).toMatch(/found and repaired:\n\n {4}1 leaked clusters\n {4}0 corruptions\n/);
    expect(repaired).toMatchObject({ code: 0, stdout: expect.stringMatching(/No errors were found on the image\.\n/) });
    qemu(["check", "-q", path]);
  });

  itWith(["qemu-img", "qemu-io"], "finds errors, says 2, and repairs them with --repair", () => {
    for (const format of ["qcow2", "qed"]) {
      const path = fresh(`bad.${format}`);
      qemu(["create", "-q", "-f", format, path, "8M"]);
      run("qemu-io", ["-c", "write -P 3 0 128k", path]);
      // The first entry of the first L2 table, which QED has behind the data.
      const at = (format === "qcow2" ? 4 : 7) * 65_536;
      const bad = Buffer.alloc(8);
      if (format === "qcow2") bad.writeBigUInt64BE(0x8000_0000_3000_0000n);
      else bad.writeBigUInt64LE(0x3000_0000n);
      writeSync(openSync(path, "r+"), bad, 0, 8, at);
      const found = blockferry(["image", "check", path]);
      expect(found.code).toBe(2);
      expect(found.stderr).toMatch(/^ERROR L2 table entry at 0x[0-9a-f]+: it says 0x[0-9a-f]+\n/);
      expect(found.stdout).toMatch(/\d errors were found on the image/);
      expect(JSON.parse(blockferry(["image", "check", "--json", path]).stdout)).toMatchObject({
        filename: path,
        format,
      });
      blockferry(["image", "check", "--repair", path]);
      expect(run("qemu-img", ["check", path]).stdout).not.toMatch(/errors were found on the image\.\nData/);
    }
  });

  test("says what it cannot check", () => {
    const raw = makeImage(folder, `${++made}.raw`);
    expectError(blockferry(["image", "check", raw]), 64, /no tables/);
    expectError(blockferry(["image", "check", fresh("none.qcow2")]), 74, /no such file/);
    expectError(blockferry(["image", "check", "--repair=some", raw]), 64, /leaks, all/);
  });

  test("does not look at an image that is served", async () => {
    const path = fresh("busy.qcow2");
    blockferry(["image", "create", "-q", path, "1M"]);
    await using server = new Running(BLOCKFERRY, ["serve", "-U", "-", path]);
    await server.ready();
    expectError(blockferry(["image", "check", path]), 75, /cannot open/);
  });
});

describe("a chain that is given", () => {
  itWith(["qemu-img", "qemu-io"], "is mapped as qemu-img maps it, and every image of it is described", () => {
    const { spec, top, mid } = makeChain();
    const map = blockferry(["image", "map", "--json", spec]);
    expect(map.stderr).toBe("");
    expect(JSON.parse(map.stdout)).toEqual(JSON.parse(qemu(["map", "--output=json", top])));
    expect(blockferry(["image", "map", spec]).stdout).toBe(qemu(["map", top]));
    expect(blockferry(["image", "info", spec]).stdout).toBe(qemu(["info", "--backing-chain", top]));
    const infos = JSON.parse(blockferry(["image", "info", "--json", spec]).stdout) as unknown;
    expect(infos).toEqual(JSON.parse(qemu(["info", "--backing-chain", "--output=json", top])));
    const checks = blockferry(["image", "check", spec]);
    expect(checks).toMatchObject({ code: 0, stdout: expect.stringContaining(`${mid}:\nNo errors`) });
  });

  itWith(["qemu-img", "qemu-io"], "is served as one disk; what lies below is not written", async () => {
    const { spec, top, mid, base } = makeChain();
    const model = fresh("model.raw");
    qemu(["convert", "-O", "raw", top, model]);
    const [midBefore, baseBefore] = [readFileSync(mid), readFileSync(base)];
    {
      await using server = new Running(BLOCKFERRY, ["serve", "-U", "-", spec]);
      const uri = await server.ready();
      qemu(["compare", "-f", "raw", "-F", "raw", uri, model]);
      for (const target of [uri, model]) {
        const { code } = run("qemu-io", ["-f", "raw", "-c", "write -P 33 700k 3M", "-c", "write -z 64k 5000", target]);
        expect(code).toBe(0);
      }
      // Another writer is kept away from what lies below, another reader is not.
      expect(run("qemu-io", ["-f", "qed", "-c", "write 0 512", mid]).code).not.toBe(0);
      expect(run("qemu-io", ["-f", "raw", "-r", "-c", "read 0 512", base]).code).toBe(0);
      server.signal("SIGTERM");
      expect((await server.ended).code).toBe(0);
    }
    qemu(["compare", "-F", "raw", top, model]);
    qemu(["check", "-q", top]);
    expect(readFileSync(mid).equals(midBefore) && readFileSync(base).equals(baseBefore)).toBe(true);
  });

  itWith(["qemu-img", "qemu-io"], "must be given as a whole, and only where something lies over something", () => {
    const { top, mid, base } = makeChain();
    expectError(blockferry(["serve", "-U", "-", top]), 74, /give the backing image explicitly/);
    expectError(blockferry(["serve", "-U", "-", `${top},backing=${mid}`]), 74, /give the backing image explicitly/);
    expectError(blockferry(["serve", "-U", "-", `${base},backing=${mid}`]), 74, /lies over nothing|explicitly/);
    expectError(blockferry(["image", "map", `${base},backing=${base}`]), 74, /a raw image lies over nothing/);
    expectError(blockferry(["serve", "--format=qcow2", "-U", "-", `${top},format=qed`]), 64, /two formats/);
  });
});

itWith(["strace", "qemu-img"], "a name inside an image is never opened, whatever is done with the image", () => {
  const secret = makeImage(folder, `${++made}-secret.raw`, MIB);
  const given = makeImage(folder, `${++made}-given.raw`, MIB);
  for (const format of ["qcow2", "qed"]) {
    const top = fresh(`naming.${format}`);
    qemu(["create", "-q", "-f", format, "-b", secret, "-F", "raw", top]);
    const chain = `${top},backing=${given}`;
    for (const args of [
      ["image", "info", top],
      ["image", "info", "--json", top],
      ["image", "map", top],
      ["image", "map", "--json", top],
      ["image", "check", top],
      ["image", "map", "--json", chain],
      ["serve", "-r", "-U", fresh("never"), top],
      ["serve", "-U", "-", "--run", "true", chain],
    ]) {
      const log = fresh("trace");
      const trace = ["--seccomp-bpf", "-f", "-qq", "-s", "4096", "-e", "trace=%file", "-o", log];
      const { code, stdout, stderr } = run("strace", [...trace, BLOCKFERRY, ...args]);
      const calls = readFileSync(log, "utf8").split("\n");
      expect(calls.some((call) => call.includes(`"${top}"`))).toBe(true);
      expect(calls.filter((call) => call.includes(secret) && !call.includes("execve"))).toEqual([]);
      // It cannot be served without its backing; looking at it is no trouble.
      expect(code === 0, `${args}: ${stderr}`).toBe(args[0] === "image" || args.includes(chain));
      if (args[1] === "check" || args.includes(chain)) continue;
      expect(`${stdout}${stderr}`.includes(secret)).toBe(args[1] !== "map");
    }
  }
});

describe("an image that was not closed cleanly", () => {
  itWith(
    ["qemu-img", "qemu-io", "nbdinfo"],
    "is served at once; status tells of its check and of the barrier",
    async () => {
      for (const [format, at, byte] of [
        ["qed", 16, 2],
        ["qcow2", 79, 1],
      ] as const) {
        const path = fresh(`dirty.${format}`);
        qemu(["create", "-q", "-f", format, path, "64M"]);
        run("qemu-io", ["-c", "write -P 3 0 1M", path]);
        const clean = fresh(`clean.${format}`);
        copyFileSync(path, clean);
        writeSync(openSync(path, "r+"), Buffer.from([byte]), 0, 1, at);
        const control = fresh("s.ctl");
        await using server = new Running(BLOCKFERRY, ["serve", "-U", "-", "-C", control, path]);
        await server.ready();
        const check = await waitFor(() => {
          const status = JSON.parse(blockferry(["status", "-C", control, "--json"]).stdout) as Status;
          const [disk] = status.disks;
          return disk?.tableCheck?.state === "clean" ? disk.tableCheck : undefined;
        });
        expect(check).toMatchObject({ clustersChecked: 1024, clustersTotal: 1024, waiting: 0, failure: null });
        expect(blockferry(["status", "-C", control]).stdout).toMatch(
          /tables {5}clean; 0 waiting for it, longest 0\.0 s\n/,
        );
        await using other = new Running(BLOCKFERRY, ["serve", "-U", "-", "-C", `${control}2`, clean]);
        await other.ready();
        const told = JSON.parse(blockferry(["status", "-C", `${control}2`, "--json"]).stdout) as Status;
        expect(told.disks[0]).not.toHaveProperty("tableCheck");
      }
    },
  );
});

interface Status {
  readonly disks: readonly { readonly tableCheck?: { readonly state: string } }[];
}

test("a raw image whose bytes say qcow2 stays raw when it is created over", () => {
  const path = fresh("guest.raw");
  blockferry(["image", "create", "-q", path, "1M"]);
  writeSync(openSync(path, "r+"), Buffer.from("QFI\xfb", "latin1"), 0, 4, 0);
  truncateSync(path, MIB);
  expect(JSON.parse(blockferry(["image", "info", "--json", path]).stdout)).toMatchObject({ format: "raw" });
});
