import { describeConformance } from "../../support/conformance.ts";
import { fakeRawTarget } from "../../support/raw-target.ts";

describeConformance("a raw image", fakeRawTarget());
describeConformance(
  "a raw image on a host without any extra feature",
  fakeRawTarget({ readNow: false, punchHole: false, zeroRange: false, extents: false }),
);
