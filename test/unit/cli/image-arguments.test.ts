/** What `image` and `serve` make of the names and options of images. */
import { describe, expect, test } from "vitest";
import { CliError } from "../../../src/cli/cli-error.ts";
import { parseCreateOptions } from "../../../src/cli/image/create-options.ts";
import { parseImageSpec } from "../../../src/cli/image/image-spec.ts";
import { tableCheckStatus } from "../../../src/cli/image/table-check-status.ts";
import { expandBareFlags } from "../../../src/cli/progress/option.ts";
import { renderStatus } from "../../../src/cli/verbs/status-text.ts";
import type { DiskStatus, Status } from "../../../src/control/status.ts";
import { chooseFormat } from "../../../src/image/format.ts";
import type { CheckProgress } from "../../../src/image/tables/check-report.ts";

const QCOW2 = chooseFormat("x.qcow2").format;
const QED = chooseFormat("x.qed").format;
const RAW = chooseFormat("x.raw").format;

function why(act: () => unknown): string {
  try {
    act();
  } catch (error) {
    if (error instanceof CliError) return `${error.parts.exitCode}: ${error.parts.why}`;
    throw error;
  }
  return "it was taken";
}

describe("an image's name on the command line", () => {
  test("is a path, with the format that was given for it", () => {
    expect(parseImageSpec("/vm/a.qcow2")).toEqual([{ path: "/vm/a.qcow2" }]);
    expect(parseImageSpec("a.img", "qed")).toEqual([{ path: "a.img", format: "qed" }]);
    expect(parseImageSpec("a.img,format=qed", "qed")).toEqual([{ path: "a.img", format: "qed" }]);
  });

  test("names what it lies over, the next one first, each with a format of its own", () => {
    expect(parseImageSpec("top.qcow2,backing=mid.img,format=qed,backing=base.raw")).toEqual([
      { path: "top.qcow2" },
      { path: "mid.img", format: "qed" },
      { path: "base.raw" },
    ]);
  });

  test("may have commas in it, doubled where a word follows that would mean something", () => {
    expect(parseImageSpec("a,b=c,d.raw")).toEqual([{ path: "a,b=c,d.raw" }]);
    expect(parseImageSpec("a,,backing=b.raw")).toEqual([{ path: "a,backing=b.raw" }]);
    expect(parseImageSpec("a,,b.raw")).toEqual([{ path: "a,,b.raw" }]);
  });

  test.for([",backing=a.raw", "a.qcow2,backing=", "a.qcow2,backing=,format=raw"])("must not be empty: %j", (text) => {
    expect(why(() => parseImageSpec(text))).toBe("64: the name of an image is empty");
  });

  test("has one format, not two", () => {
    expect(why(() => parseImageSpec("a,format=raw", "qed"))).toBe("64: two formats are given for a");
    expect(why(() => parseImageSpec("a,format=raw,format=qed"))).toBe("64: two formats are given for a");
  });
});

describe("options of a new image", () => {
  test("are those of qemu-img, with sizes as everywhere", () => {
    expect(parseCreateOptions(["cluster_size=64K,compat=0.10"], QCOW2)).toEqual({ clusterBytes: 65_536, version: 2 });
    expect(parseCreateOptions(["cluster_size=2M", "compat=v3"], QCOW2)).toEqual({ clusterBytes: 2 ** 21, version: 3 });
    expect(parseCreateOptions(["table_size=8,cluster_size=4096"], QED)).toEqual({
      tableClusters: 8,
      clusterBytes: 4096,
    });
    expect(parseCreateOptions([], RAW)).toEqual({});
  });

  test("of another format, or of none, are refused, and the right ones named", () => {
    expect(why(() => parseCreateOptions(["table_size=8"], QCOW2))).toBe('64: qcow2 has no option "table_size"');
    expect(why(() => parseCreateOptions(["cluster_size=4K"], RAW))).toBe('64: raw has no option "cluster_size"');
    expect(why(() => parseCreateOptions(["constructor=1"], QED))).toBe('64: qed has no option "constructor"');
    expect(why(() => parseCreateOptions(["backing_file=a"], QED))).toBe("64: use --backing and --backing-format");
  });

  test("must have values that mean something", () => {
    expect(why(() => parseCreateOptions(["cluster_size=big"], QCOW2))).toMatch(/^64: A size is/);
    expect(why(() => parseCreateOptions(["compat=toString"], QCOW2))).toMatch(/^64: It is 0\.10/);
    expect(why(() => parseCreateOptions(["table_size"], QED))).toMatch(/^64: It must be a whole number/);
  });
});

test("a bare --repair repairs everything, and takes no word for its value", () => {
  expect(expandBareFlags(["image", "check", "--repair", "a.qed"])).toEqual(["image", "check", "--repair=all", "a.qed"]);
  expect(expandBareFlags(["--", "--repair", "constructor"])).toEqual(["--", "--repair", "constructor"]);
});

describe("the check of tables, in status", () => {
  const progress: CheckProgress = {
    ...{
      state: "running",
      clustersChecked: 25,
      clustersTotal: 100,
      waiting: 3,
      longestWaitMs: 1234,
      entriesCleared: 2,
    },
  };

  test("is told of an image that was not closed cleanly, with the barrier", () => {
    const { tableCheck } = tableCheckStatus({ dirty: true, checkProgress: progress });
    expect(tableCheck).toEqual({
      ...{ state: "running", clustersChecked: 25, clustersTotal: 100, waiting: 3, entriesCleared: 2 },
      ...{ longestWaitSeconds: 1.234, failure: null },
    });
    const disk: DiskStatus = {
      ...{ name: "vda", image: "a.qed", format: "qed", readOnly: false, sizeBytes: 100, clusterBytes: null },
      ...{ localBytes: 100, missingBytes: 0, state: "concluded" as const, hydration: null, source: null },
      ...(tableCheck && { tableCheck }),
    };
    const status: Status = {
      program: "blockferry",
      version: "1",
      pid: 1,
      role: "serve",
      state: "running",
      startedAt: "",
      uptimeSeconds: 1,
      reached: [],
      disks: [disk],
      clients: 0,
      uris: [],
      next: null,
    };
    expect(renderStatus(status)).toContain(
      "  tables     running 25.0%, 2 entries cleared; 3 waiting for it, longest 1.2 s\n",
    );
  });

  test("is not told of others", () => {
    expect(tableCheckStatus({ dirty: false })).toEqual({});
    expect(tableCheckStatus({ dirty: false, checkProgress: { ...progress, state: "none" } })).toEqual({});
    const pending = tableCheckStatus({ dirty: true, checkProgress: { ...progress, state: "none" } });
    expect(pending.tableCheck?.state).toBe("pending");
  });
});
