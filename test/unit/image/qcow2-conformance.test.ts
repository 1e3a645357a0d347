import { describeConformance } from "../../support/conformance.ts";
import { fakeQcow2Target } from "../../support/qcow2-target.ts";

const NOTHING = { readNow: false, punchHole: false, zeroRange: false, extents: false };

describeConformance("a qcow2 image", fakeQcow2Target());
describeConformance("a qcow2 image with the smallest clusters", fakeQcow2Target({ clusterBytes: 512 }));
describeConformance("a qcow2 image of version 2", fakeQcow2Target({ clusterBytes: 4096, version: 2 }));
describeConformance("a qcow2 image over a backing", fakeQcow2Target({ overBacking: true, clusterBytes: 4096 }));
describeConformance(
  "a qcow2 image of version 2 over a backing",
  fakeQcow2Target({ overBacking: true, clusterBytes: 1024, version: 2 }),
);
describeConformance(
  "a qcow2 image on a host without any extra feature",
  fakeQcow2Target({ features: NOTHING, clusterBytes: 2 ** 21 }),
);
describeConformance(
  "a qcow2 image over a backing on a host without any extra feature",
  fakeQcow2Target({ features: NOTHING, overBacking: true }),
);
