/** What the tests of the handshake ask of: four exports over one device. */
import { expect } from "vitest";
import { MemoryDevice } from "../../../../src/block/memory.ts";
import type { MetaContext, NbdExport } from "../../../../src/nbd/server/export.ts";
import type { ServerLimits } from "../../../../src/nbd/server/limits.ts";
import { OPT, type OptionReply, REP } from "../../../support/nbd-wire.ts";
import type { RawClient } from "../../../support/raw-client.ts";
import { ServerRig } from "../../../support/server-rig.ts";

export const MIB = 1024 * 1024;
export const BASE = "base:allocation";

export const disk = new MemoryDevice({ sizeBytes: 8 * MIB, blockSizes: { minimum: 1, preferred: 65_536 } });

export const presence: MetaContext = {
  name: "x-blockferry:presence",
  status: async (_offset, length) => [{ length, flags: 5 }],
};

export const EXPORTS: readonly NbdExport[] = [
  { name: "", device: disk, readOnly: false },
  { name: "disk", device: disk, readOnly: false, description: "the first disk", contexts: [presence] },
  { name: "disk/ro", device: disk, readOnly: true },
  { name: "ünïcode", device: disk, readOnly: false },
];

/** A client that has sent its flags and no option yet. */
export async function greeted(limits: Partial<ServerLimits> = {}): Promise<{ rig: ServerRig; client: RawClient }> {
  const rig = new ServerRig({ exports: EXPORTS, limits });
  const { client } = rig.connect();
  await client.greet();
  return { rig, client };
}

/** Still listens to options: the handshake goes on after whatever was tried. */
export async function expectAlive(client: RawClient): Promise<void> {
  expect(await client.optionOutcome(OPT.LIST)).toBe(REP.ACK);
}

/** The information of `type` among replies to INFO or GO, without the type itself. */
export function infoOf(replies: readonly OptionReply[], type: number): Buffer | undefined {
  return replies.find((reply) => reply.type === REP.INFO && reply.data.readUInt16BE(0) === type)?.data.subarray(2);
}
