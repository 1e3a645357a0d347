/** Who can read the disk in the demo. Apart from the code, so that the command line can list them at no cost. */
export const CLIENT_NAMES = ["nbdcopy", "qemu-img", "blockferry"] as const;

export type ClientName = (typeof CLIENT_NAMES)[number];
