/** Writes and syncs a file three times, and says how each sync ended. Runs under strace, which makes the first one fail. */
import { RealFiles } from "../../../src/os/files.ts";
import { loadNative } from "../../../src/os/native.ts";

const [path = ""] = process.argv.slice(2);
await using file = await new RealFiles(loadNative({ disabled: false })).open({ path, writable: true });
for (let round = 0; round < 3; round++) {
  await file.write(0, new Uint8Array(4096).fill(round + 1));
  await file.dataSync().then(
    () => console.log("durable"),
    (error: Error & { code?: string }) => console.log(`${error.name} ${error.code}`),
  );
}
console.log(`punched ${await file.punchHole(0, 4096)}`);
