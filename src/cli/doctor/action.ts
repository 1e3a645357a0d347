/** `doctor`, once its flags are known. */
import { type Capability, probeCapabilities } from "../../os/capabilities.ts";
import { hasProgram } from "../../os/programs.ts";
import type { EffectiveSetting } from "../command-context.ts";
import { EXIT_NO, EXIT_OK } from "../exit-codes.ts";
import { printable, printableJson } from "../printable.ts";
import { VERSION } from "../version.ts";

/** Node 22.15: the first that strips types or needs no flags for what we use. */
const NODE_MINIMUM: readonly [number, number] = [22, 15];
/** Programs of others that speak NBD. None is needed; the demo, the interoperability tests and the benchmark use them. */
const PEERS = ["nbdcopy", "nbdinfo", "qemu-img", "qemu-nbd", "nbdkit", "nbd-client", "fio"];

type Finding = Pick<Capability, "name" | "detail"> & {
  /** "ok", "slower" (a fallback is in use), "missing" (of no consequence but what `detail` says), "broken" (nothing works without it). */
  readonly state: "ok" | "slower" | "missing" | "broken";
};

export async function showHealth(directory: string, json: boolean): Promise<number> {
  const findings = [nodeFinding(process.versions.node), ...(await hostFindings(directory)), ...PEERS.map(peerFinding)];
  const broken = findings.some(({ state }) => state === "broken");
  const heading = { version: VERSION, node: process.versions.node, openssl: process.versions.openssl, directory };
  if (json) process.stdout.write(`${printableJson({ ...heading, ok: !broken, findings })}\n`);
  else
    process.stdout.write(
      renderFindings(`blockferry ${VERSION}, Node ${heading.node}, OpenSSL ${heading.openssl}`, findings),
    );
  return broken ? EXIT_NO : EXIT_OK;
}

export function nodeFinding(version: string): Finding {
  const [major = 0, minor = 0] = version.split(".").map(Number);
  const [wantMajor, wantMinor] = NODE_MINIMUM;
  const enough = major > wantMajor || (major === wantMajor && minor >= wantMinor);
  const detail = enough ? "new enough" : `${NODE_MINIMUM.join(".")} or newer is needed`;
  return { name: `Node ${version}`, state: enough ? "ok" : "broken", detail };
}

async function hostFindings(directory: string): Promise<Finding[]> {
  const capabilities = await probeCapabilities(directory);
  return capabilities.map(({ name, state, detail }) => ({
    name,
    state: state === "native" ? "ok" : state === "fallback" ? "slower" : "missing",
    detail,
  }));
}

function peerFinding(program: string): Finding {
  return hasProgram(program, process.env["PATH"] ?? "")
    ? { name: program, state: "ok", detail: "on PATH" }
    : { name: program, state: "missing", detail: "not on PATH; only tests, demo and benchmarks use it" };
}

function renderFindings(heading: string, findings: readonly Finding[]): string {
  const width = Math.max(...findings.map(({ name }) => name.length));
  const lines = findings.map(({ name, state, detail }) => `  ${state.padEnd(8)} ${name.padEnd(width)}  ${detail}`);
  return [heading, ...lines.map(printable), ""].join("\n");
}

export function showConfig(settings: readonly EffectiveSetting[], json: boolean): void {
  if (json) {
    process.stdout.write(`${printableJson(settings)}\n`);
  } else if (settings.length === 0) {
    process.stdout.write("Neither the environment nor a configuration file sets any flag.\n");
  } else {
    const lines = settings.map(
      ({ command, flag, value, origin }) => `${command}  --${flag}=${String(value)}  (${origin})`,
    );
    process.stdout.write(`${lines.map(printable).join("\n")}\n`);
  }
}
