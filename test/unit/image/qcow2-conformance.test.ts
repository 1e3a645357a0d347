import { describeConformance } from "../../support/conformance.ts";
import { fakeQcow2Target } from "../../support/qcow2-target.ts";
import { drawn } from "../../support/seed.ts";

const NOTHING = { readNow: false, punchHole: false, zeroRange: false, extents: false };

const IMAGES = {
  "a qcow2 image": {},
  "a qcow2 image with the smallest clusters": { clusterBytes: 512 },
  "a qcow2 image of version 2": { clusterBytes: 4096, version: 2 },
  "a qcow2 image over a backing": { overBacking: true, clusterBytes: 4096 },
  "a qcow2 image of version 2 over a backing": { overBacking: true, clusterBytes: 1024, version: 2 },
  "a qcow2 image on a host without any extra feature": { features: NOTHING, clusterBytes: 2 ** 21 },
  "a qcow2 image over a backing on a host without any extra feature": { features: NOTHING, overBacking: true },
} as const;

for (const [name, options] of drawn(Object.entries(IMAGES), 3)) describeConformance(name, fakeQcow2Target(options));
