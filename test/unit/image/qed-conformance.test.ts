import { describeConformance } from "../../support/conformance.ts";
import { fakeQedTarget } from "../../support/qed-target.ts";

describeConformance("a QED image", fakeQedTarget());
describeConformance(
  "a QED image with the smallest clusters and tables",
  fakeQedTarget({ clusterBytes: 4096, tableClusters: 2 }),
);
describeConformance("a QED image over a backing", fakeQedTarget({ overBacking: true, clusterBytes: 4096 }));
describeConformance(
  "a QED image on a host without any extra feature",
  fakeQedTarget({
    features: { readNow: false, punchHole: false, zeroRange: false, extents: false },
    tableClusters: 16,
  }),
);
describeConformance(
  "a QED image over a backing on a host without any extra feature",
  fakeQedTarget({
    features: { readNow: false, punchHole: false, zeroRange: false, extents: false },
    overBacking: true,
  }),
);
