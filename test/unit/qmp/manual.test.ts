import { expect, test } from "vitest";
import { manualSteps, renderManualStep } from "../../../src/qmp/manual.ts";

test("the steps by hand are those of the choreography, as commands that libvirt passes on", () => {
  const steps = manualSteps("unix:/run/vm.ram");
  expect(steps.map(({ where, command }) => command?.execute ?? where)).toEqual([
    "migrate-set-capabilities",
    "migrate",
    "query-migrate",
    "blockferry",
    "migrate-continue",
    "query-migrate",
    "cont",
  ]);
  expect(renderManualStep(steps[1] as (typeof steps)[number], "web1")).toBe(
    `virsh qemu-monitor-command web1 '{"execute":"migrate","arguments":{"uri":"unix:/run/vm.ram"}}'   # source: begin`,
  );
});
