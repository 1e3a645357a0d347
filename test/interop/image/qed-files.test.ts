/** QED images on this host's file systems, with the native calls and without. */
import { existsSync } from "node:fs";
import { tmpdir } from "node:os";
import { afterAll } from "vitest";
import type { ConformanceTarget } from "../../../src/block/conformance/rule.ts";
import type { Env } from "../../../src/env/env.ts";
import { createQed } from "../../../src/image/qed/create.ts";
import { openQed } from "../../../src/image/qed/open.ts";
import { loadNative } from "../../../src/os/native.ts";
import { createRealEnv } from "../../../src/os/real-env.ts";
import { describeConformance } from "../../support/conformance.ts";
import { type TempDir, tempDir } from "../../support/temp-dir.ts";

const native = createRealEnv(loadNative({ disabled: false }));
const plain = createRealEnv(loadNative({ disabled: true }));
const disk = tempDir(tmpdir());
const memory = tempDir(existsSync("/dev/shm") ? "/dev/shm" : tmpdir());

afterAll(() => {
  disk[Symbol.dispose]();
  memory[Symbol.dispose]();
});

let made = 0;

/** Every device gets a file of its own in `folder`. Small clusters, so that requests meet their borders. */
function realQedTarget(env: Env, folder: TempDir): ConformanceTarget {
  return {
    sizeMultiple: 512,
    sizeMaxBytes: 1024 * 1024 * 4096,
    async make({ sizeBytes, content, readOnly = false }) {
      const path = folder.file(`${++made}.qed`);
      await createQed(env, { path, sizeBytes, clusterBytes: 4096, tableClusters: 2 });
      if (content !== undefined) {
        await using filling = await openQed(env, { path, readOnly: false });
        await filling.write(0, content);
      }
      return openQed(env, { path, readOnly });
    },
  };
}

describeConformance("a QED image on a disk's file system", realQedTarget(native, disk));
describeConformance("a QED image on tmpfs without native calls", realQedTarget(plain, memory), { tools: ["flock"] });
