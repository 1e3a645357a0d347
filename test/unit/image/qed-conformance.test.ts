import { describeConformance } from "../../support/conformance.ts";
import { fakeQedTarget } from "../../support/qed-target.ts";
import { drawn } from "../../support/seed.ts";

const NOTHING = { readNow: false, punchHole: false, zeroRange: false, extents: false };

const IMAGES = {
  "a QED image": {},
  "a QED image with the smallest clusters and tables": { clusterBytes: 4096, tableClusters: 2 },
  "a QED image over a backing": { overBacking: true, clusterBytes: 4096 },
  "a QED image on a host without any extra feature": { features: NOTHING, tableClusters: 16 },
  "a QED image over a backing on a host without any extra feature": { features: NOTHING, overBacking: true },
} as const;

for (const [name, options] of drawn(Object.entries(IMAGES), 3)) describeConformance(name, fakeQedTarget(options));
