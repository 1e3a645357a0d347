/** blockferry, but for one byte: what its `dest` leaves behind is not what it was given. For tests that have to notice. */
import { closeSync, openSync, writeSync } from "node:fs";

const image = process.argv.at(-1)?.replace(/^vda=/, "") ?? "";

if (process.argv[2] === "dest") {
  process.on("exit", () => {
    const fd = openSync(image, "r+");
    writeSync(fd, Buffer.from("?"), 0, 1, 3 * 1024 * 1024 + 1);
    closeSync(fd);
  });
}
void import("../../../src/cli/main.ts");
