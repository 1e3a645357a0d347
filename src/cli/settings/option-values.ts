/** Parsers of option values, for commander: they throw `InvalidArgumentError`, whose text says what is wrong. */
import { InvalidArgumentError } from "@commander-js/extra-typings";

/** A TCP port; 0 lets the kernel choose. */
export function parsePort(text: string): number {
  const port = /^[0-9]{1,5}$/.test(text) ? Number(text) : Number.NaN;
  if (!(port <= 65_535)) throw new InvalidArgumentError("A port is a whole number from 0 to 65535.");
  return port;
}

/** A count from 0 to a million. */
export function parseCount(text: string): number {
  if (!/^[0-9]{1,6}$/.test(text)) throw new InvalidArgumentError("It must be a whole number, not negative.");
  return Number(text);
}

const UNITS = ["", "K", "M", "G", "T", "P"];

/** "64M", "1.5G", "4096": bytes, with binary multiples, as qemu-img and truncate take them. "64MiB" and "64mb" mean the same. */
export function parseSize(text: string): number {
  const match = /^([0-9]+(?:\.[0-9]+)?)([KMGTP]?)(?:i?B)?$/i.exec(text);
  const [, digits = "", unit = ""] = match ?? [];
  const bytes = Number(digits) * 1024 ** UNITS.indexOf(unit.toUpperCase());
  if (match === null || !Number.isSafeInteger(bytes)) {
    throw new InvalidArgumentError("A size is a number with K, M, G or T behind it, and a whole number of bytes.");
  }
  return bytes;
}
