/**
 * Images as the command line names them: `top.qcow2,backing=mid.qcow2,backing=base.raw`, each with `,format=F` behind it
 * if need be. The chain is what the operator says, never what headers say. Only `,backing=` and `,format=` mean anything:
 * other commas belong to file names, and where a name has one of these words in it, its comma is doubled.
 */
import type { ChainLink } from "../../image/chain.ts";
import { usageError } from "../cli-error.ts";

const PROPERTY = /(?<!,),(?=(?:backing|format)=)/;
const DOUBLED = /,,(?=(?:backing|format)=)/g;

/** The top first. `format`: what `--format` says of the top. Throws a usage error. */
export function parseImageSpec(text: string, format?: string): [ChainLink, ...ChainLink[]] {
  const [first = "", ...rest] = text.split(PROPERTY).map((part) => part.replaceAll(DOUBLED, ","));
  const chain: [ChainLink, ...ChainLink[]] = [link(first, format, text)];
  for (const part of rest) {
    const value = part.slice(part.indexOf("=") + 1);
    if (part.startsWith("backing=")) {
      chain.push(link(value, undefined, text));
      continue;
    }
    const last = chain[chain.length - 1] ?? chain[0];
    if (last.format !== undefined && last.format !== value) {
      throw usageError(`cannot use ${text}`, `two formats are given for ${last.path}`, "give one of them");
    }
    chain[chain.length - 1] = { ...last, format: value };
  }
  return chain;
}

function link(path: string, format: string | undefined, text: string): ChainLink {
  if (path !== "") return { path, ...(format !== undefined && { format }) };
  const why = text === "" ? "IMAGE is empty" : "the name of an image is empty";
  throw usageError(`cannot use ${JSON.stringify(text)}`, why, "name an image file or a block device");
}
