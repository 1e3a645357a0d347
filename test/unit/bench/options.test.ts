import { describe, expect, test } from "vitest";
import { parseOptions, UsageError } from "../../../bench/lib/options.ts";

describe("the command line", () => {
  test("needs no options", () => {
    expect(parseOptions(["nbd"])).toEqual({
      ...{ suite: "nbd", samples: 5, quick: false, filter: "", only: [], jsonFile: undefined },
      ...{ directory: "/var/tmp", sizeBytes: undefined, list: false, help: false },
    });
  });

  test("takes them all, before and after the suite", () => {
    const words = ["--quick", "nbd", "--json", "r.json", "--samples", "7", "--filter=qd1", "--dir", "/mnt"];
    expect(parseOptions(words)).toMatchObject({
      ...{ suite: "nbd", quick: true, jsonFile: "r.json", samples: 7, filter: "qd1", directory: "/mnt" },
    });
  });

  test("takes fewer samples when it has to be quick, unless told how many", () => {
    expect(parseOptions(["nbd", "--quick"]).samples).toBe(3);
    expect(parseOptions(["nbd", "--quick", "--samples", "5"]).samples).toBe(5);
  });

  test("understands sizes in MiB and GiB", () => {
    expect(parseOptions(["stream", "--size", "512M"]).sizeBytes).toBe(512 * 2 ** 20);
    expect(parseOptions(["stream", "--size=2G"]).sizeBytes).toBe(2 ** 31);
  });

  test("names several contenders in one word or in several", () => {
    expect(parseOptions(["nbd", "--only", "a,b", "--only", "c"]).only).toEqual(["a", "b", "c"]);
  });

  test.each([
    [["nbd", "--samples", "0"], /from 1 on/],
    [["nbd", "--samples", "2.5"], /2\.5/],
    [["nbd", "--samples", ""], /from 1 on/],
    [["nbd", "wan"], /nbd wan/],
    [["stream", "--size", "1"], /"1"/],
    [["stream", "--size", "0M"], /512M/],
    [["stream", "--size", "1.5G"], /1\.5G/],
    [["nbd", "--fast"], /--fast/],
    [["nbd", "--json"], /json/],
  ])("refuses %j, and says what is wrong", (words, message) => {
    expect(() => parseOptions(words)).toThrow(UsageError);
    expect(() => parseOptions(words)).toThrow(message);
  });
});
