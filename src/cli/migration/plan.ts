/** What `source` and `dest` have in common of what they were asked to do, checked as a whole. Pure but for two folders' names. */
import { createHash } from "node:crypto";
import { homedir } from "node:os";
import { join, resolve } from "node:path";
import type { Address } from "../../env/links.ts";
import { CliError, usageError } from "../cli-error.ts";
import { EXIT_CONFIG, EXIT_USAGE } from "../exit-codes.ts";
import { runtimeDirectory } from "../instance/runtime-directory.ts";
import { isLoopback, planServe, planTls, type ServePlan, type Surroundings, type TlsPlan } from "../serving/plan.ts";
import { type DiskPlan, planDisks } from "./disk-spec.ts";
import type { MigrationFlags } from "./flags.ts";
import { planQmp, type QmpPlan } from "./qmp.ts";
import { planTunnels, type TunnelPlan } from "./tunnels.ts";

type Environment = Readonly<Record<string, string | undefined>>;

export interface MigrationPlan {
  readonly disks: readonly [DiskPlan, ...DiskPlan[]];
  /** Where and how the guest's exports are served. */
  readonly serve: ServePlan;
  /** Of the link. */
  readonly tls: TlsPlan;
  readonly tunnels: readonly TunnelPlan[];
  /** QEMU's monitor, where its guest is to move with its disks. */
  readonly qmp: QmpPlan | undefined;
  readonly stateDirectory: string;
  /** Path of the control socket; undefined: the usual place. */
  readonly control: string | undefined;
  /** The disks, for sockets, processes and folders. */
  readonly label: string;
}

export interface MigrationAround extends Surroundings {
  readonly env: Environment;
  readonly uid: number;
}

const LABEL_CHARACTERS_MAX = 40;

export function planMigration(
  role: "source" | "dest",
  specs: readonly string[],
  flags: MigrationFlags,
  around: MigrationAround,
): MigrationPlan {
  const { directory } = around;
  const disks = planDisks(specs, directory);
  const label = disks
    .map(({ name }) => name)
    .join("+")
    .slice(0, LABEL_CHARACTERS_MAX);
  return {
    disks,
    serve: planGuestListen(role, label, { flags, around, image: disks[0].chain[0].path }),
    tls: planLinkTls(flags, directory),
    tunnels: planTunnels(flags.tunnel ?? [], directory),
    qmp: planQmp(flags.qmp, directory),
    stateDirectory: resolve(directory, flags.stateDir ?? defaultStateDirectory(role, disks, around)),
    control: flags.control,
    label,
  };
}

interface GuestListen {
  readonly flags: MigrationFlags;
  readonly around: MigrationAround;
  readonly image: string;
}

/** The guest is on this host: its socket is not for others, and has no TLS. */
function planGuestListen(role: string, label: string, { flags, around, image }: GuestListen): ServePlan {
  const { unix, socket, port, bind, shared, pidFile, control, exitWithParent, json, fork } = flags;
  const named = unix ?? socket ?? port ?? bind;
  const chosen =
    named !== undefined || around.inherited.length > 0
      ? definedOf({ unix, socket, port, bind })
      : { unix: join(runtimeFolder(around), `${role}-${label}.sock`) };
  const others = definedOf({ shared, pidFile, control, exitWithParent, json, fork });
  const plan = planServe(image, { ...chosen, ...others, exportName: label }, around);
  if (plan.listen.kind !== "tcp" || isLoopback(plan.listen.host)) return plan;
  const why = `${plan.listen.host} is not of this host alone, and what the guest says to its disks is not protected`;
  throw usageError("cannot use --bind", why, "leave it out for 127.0.0.1, or use a unix socket");
}

function definedOf<T extends object>(record: T): { [K in keyof T]?: Exclude<T[K], undefined> } {
  const entries = Object.entries(record).filter(([, value]) => value !== undefined);
  return Object.fromEntries(entries) as { [K in keyof T]?: Exclude<T[K], undefined> };
}

function runtimeFolder({ env, uid }: MigrationAround): string {
  const folder = runtimeDirectory(env, uid);
  if (folder !== undefined) return folder;
  throw new CliError({
    exitCode: EXIT_CONFIG,
    code: "runtime-directory",
    what: "cannot tell where the guest's socket should be",
    why: "XDG_RUNTIME_DIR is not set",
    hint: "name a unix socket with -U, or a TCP port with -p",
  });
}

/** Certificates prove both sides: whoever may dial gets the disks. */
function planLinkTls(flags: MigrationFlags, directory: string): TlsPlan {
  const { tls, tlsCertificates, tlsPsk, insecure } = flags;
  const tlsVerifyPeer = tlsCertificates !== undefined && tls !== "off";
  const plan = planTls({ ...definedOf({ tls, tlsCertificates, tlsPsk, insecure }), tlsVerifyPeer }, directory);
  return plan.mode === "on" ? { ...plan, mode: "require" } : plan;
}

/** Off loopback, everybody on the way could read and change the disks: only on request. */
export function checkLinkExposure(address: Address, tls: TlsPlan): void {
  if (address.kind === "unix" || isLoopback(address.host) || tls.mode !== "off" || tls.deliberate) return;
  throw new CliError({
    exitCode: EXIT_USAGE,
    code: "insecure",
    what: `will not link over ${address.host} without TLS`,
    why: "everybody on the way could read the disks, change them, or take them away",
    hint: "make a key with `blockferry key`, and add --tls-psk FILE on both hosts (or --insecure, if the network is trusted)",
  });
}

/** The same for the same disks, so that the same command line goes on where the last one stopped. */
function defaultStateDirectory(
  role: string,
  disks: readonly [DiskPlan, ...DiskPlan[]],
  { env, uid }: MigrationAround,
): string {
  const hash = createHash("sha256");
  for (const { name, chain } of disks) hash.update(`${name}\0${chain[0].path}\0`);
  const state = env["XDG_STATE_HOME"];
  const own = state?.startsWith("/") ? state : join(homedir(), ".local/state");
  const base = uid === 0 ? "/var/lib" : own;
  return join(base, "blockferry", `${role}-${disks[0].name}-${hash.digest("hex").slice(0, 12)}`);
}
