/** The same choreography by hand, for a QEMU whose monitor is somebody else's: libvirt passes commands on. */

export interface ManualStep {
  readonly where: "source" | "destination" | "blockferry";
  readonly text: string;
  /** What to give QEMU, if it is for QEMU. */
  readonly command?: { readonly execute: string; readonly arguments?: Readonly<Record<string, unknown>> };
}

/** What to do, in order. `uri` is where the source QEMU migrates to: the tunnel's end on the source. */
export function manualSteps(uri: string): ManualStep[] {
  const on = ["pause-before-switchover", "return-path", "events"].map((capability) => ({ capability, state: true }));
  const capabilities = [...on, { capability: "multifd", state: false }];
  return [
    {
      where: "source",
      text: "let the migration wait for the disks",
      command: { execute: "migrate-set-capabilities", arguments: { capabilities } },
    },
    { where: "source", text: "begin", command: { execute: "migrate", arguments: { uri } } },
    {
      where: "source",
      text: 'repeat until "status" is "pre-switchover"; the guest stands still from then on',
      command: { execute: "query-migrate" },
    },
    { where: "blockferry", text: "blockferry switchover (if it fails: migrate_cancel in place of what follows)" },
    {
      where: "source",
      text: "go on",
      command: { execute: "migrate-continue", arguments: { state: "pre-switchover" } },
    },
    {
      where: "source",
      text: 'repeat until "status" is "completed"; if it is "failed", the guest runs here again: blockferry cancel brings its disks back',
      command: { execute: "query-migrate" },
    },
    { where: "destination", text: "let the guest run", command: { execute: "cont" } },
  ];
}

/** One step as a line for a shell. `domain`: libvirt's name of the guest. */
export function renderManualStep(step: ManualStep, domain: string): string {
  if (step.command === undefined) return step.text;
  return `virsh qemu-monitor-command ${domain} '${JSON.stringify(step.command)}'   # ${step.where}: ${step.text}`;
}
