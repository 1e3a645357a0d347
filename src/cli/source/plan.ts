/** What `source` was asked to do, checked as a whole. Nothing is opened here. */
import { hostname } from "node:os";
import { type Address, formatAddress } from "../../env/links.ts";
import { usageError } from "../cli-error.ts";
import { parseLinkAddress } from "../migration/address.ts";
import type { MigrationFlags } from "../migration/flags.ts";
import { checkLinkExposure, type MigrationAround, type MigrationPlan, planMigration } from "../migration/plan.ts";
import { shellQuote } from "../serving/uri.ts";

export interface SourceFlags extends MigrationFlags {
  readonly link?: string;
  readonly lateOpen?: true | boolean;
  /** Null: unlimited. */
  readonly rate?: number | null;
}

export interface SourcePlan extends MigrationPlan {
  /** Where destinations dial. */
  readonly link: Address;
  /** What of the command line the other side needs as well, ready for a shell. */
  readonly shared: readonly string[];
  /** The images are open in the guest's own QEMU until it has moved: nothing is served to it. */
  readonly lateOpen: boolean;
  readonly rateBytesPerSecond: number | undefined;
}

export function planSource(words: readonly string[], flags: SourceFlags, around: MigrationAround): SourcePlan {
  const plan = planMigration("source", [...(flags.disk ?? []), ...words], flags, around);
  if (flags.link === undefined) {
    throw usageError("cannot start a source", "--link is missing", "say where the destination dials: --link HOST:7000");
  }
  const link = parseLinkAddress(flags.link, "--link", around.directory);
  checkLinkExposure(link, plan.tls);
  const { lateOpen = false, rate } = flags;
  if (lateOpen) checkLateOpen(flags, around);
  return { ...plan, link, shared: sharedWords(flags), lateOpen, rateBytesPerSecond: rate ?? undefined };
}

function checkLateOpen({ qmp, unix, socket, port, bind }: SourceFlags, { inherited }: MigrationAround): void {
  if (qmp === undefined) {
    const why = "only QEMU can tell when it has let go of its images";
    throw usageError("cannot use --late-open", why, "add --qmp SOCKET, QEMU's monitor");
  }
  if (inherited.length === 0 && (unix ?? socket ?? port ?? bind) === undefined) return;
  const why = "the guest has its images open itself: nothing is served on this host";
  throw usageError("cannot use --late-open", why, "leave out where to listen for the guest");
}

function sharedWords({ tlsPsk, tlsCertificates, insecure, tls, tunnel = [], qmp }: SourceFlags): string[] {
  const words: string[] = [];
  if (tlsPsk !== undefined) words.push("--tls-psk", tlsPsk);
  if (tlsCertificates !== undefined) words.push("--tls-certificates", tlsCertificates);
  if (insecure) words.push("--insecure");
  if (tls === "off") words.push("--tls", "off");
  for (const spec of tunnel) words.push("--tunnel", spec);
  if (qmp !== undefined) words.push("--qmp", qmp);
  return words.map(shellQuote);
}

/** What to run on the other host. `bound` is where the link listens indeed. */
export function destLine({ disks, shared }: Pick<SourcePlan, "disks" | "shared">, bound: Address): string {
  const address = formatAddress(dialable(bound));
  // What lies below an image here is part of the disk over there.
  const specs = disks.map(({ name, spec, chain: [top] }) => {
    const image = spec.slice(name.length + 1).split(",backing=")[0] ?? top.path;
    return `${name}=${image}`;
  });
  return ["blockferry dest", shellQuote(address), ...specs.map(shellQuote), ...shared].join(" ");
}

function dialable(address: Address): Address {
  if (address.kind === "unix" || (address.host !== "0.0.0.0" && address.host !== "::")) return address;
  return { ...address, host: hostname() };
}
