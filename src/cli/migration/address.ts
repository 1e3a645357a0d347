/** Where the link of a migration is: `host:port`, `[v6]:port` or `unix:/path`. */
import { resolve } from "node:path";
import type { Address } from "../../env/links.ts";
import { usageError } from "../cli-error.ts";

const HOST_PORT = /^(?:\[([0-9A-Fa-f:.%]+)\]|([^:[\]/]+)):([0-9]{1,5})$/;
const PORT_MAX = 65_535;

/** `what` names the flag or argument in the usage error that it throws. */
export function parseLinkAddress(text: string, what: string, directory: string): Address {
  if (text.startsWith("unix:") && text.length > "unix:".length) {
    return { kind: "unix", path: resolve(directory, text.slice("unix:".length)) };
  }
  const [, v6, host = v6, digits = ""] = HOST_PORT.exec(text) ?? [];
  const port = Number(digits);
  if (host !== undefined && port <= PORT_MAX) return { kind: "tcp", host, port };
  const why = `${JSON.stringify(text)} is no address of a link`;
  throw usageError(`cannot use ${what}`, why, "write host:port, such as 192.0.2.1:7000, or unix:/path");
}
