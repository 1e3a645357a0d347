/** qcow2 images on this host's file systems, with the native calls and without. */
import { existsSync } from "node:fs";
import { tmpdir } from "node:os";
import { afterAll } from "vitest";
import type { ConformanceTarget } from "../../../src/block/conformance/rule.ts";
import type { Env } from "../../../src/env/env.ts";
import { createQcow2 } from "../../../src/image/qcow2/create.ts";
import { openQcow2 } from "../../../src/image/qcow2/open.ts";
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
function realQcow2Target(env: Env, folder: TempDir): ConformanceTarget {
  return {
    sizeMultiple: 512,
    sizeMaxBytes: 2 ** 43,
    async make({ sizeBytes, content, readOnly = false }) {
      const path = folder.file(`${++made}.qcow2`);
      await createQcow2(env, { path, sizeBytes, clusterBytes: 4096 });
      if (content !== undefined) {
        await using filling = await openQcow2(env, { path, readOnly: false });
        await filling.write(0, content);
      }
      return openQcow2(env, { path, readOnly });
    },
  };
}

describeConformance("a qcow2 image on a disk's file system", realQcow2Target(native, disk));
describeConformance("a qcow2 image on tmpfs without native calls", realQcow2Target(plain, memory), {
  tools: ["flock"],
});
