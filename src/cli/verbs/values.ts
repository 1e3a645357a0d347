/** Parsers of the values that verbs take, for commander: they throw `InvalidArgumentError`. */
import { InvalidArgumentError } from "@commander-js/extra-typings";
import { parseSize } from "../settings/option-values.ts";

const WINDOW_BYTES_LEAST = 16 * 1024;
const WINDOW_BYTES_MOST = 256 * 1024 * 1024;

const MS_BY_UNIT: Readonly<Record<string, number>> = { ms: 1, s: 1000, m: 60_000, h: 3_600_000, d: 86_400_000 };

/** "60s", "5m", "1.5h", "250ms"; a bare number is seconds. Gives milliseconds. */
export function parseDuration(text: string): number {
  const [, digits, unit = "s"] = /^([0-9]{1,9}(?:\.[0-9]{1,3})?)(ms|s|m|h|d)?$/.exec(text) ?? [];
  if (digits === undefined) throw new InvalidArgumentError("A duration is a number with ms, s, m, h or d behind it.");
  return Math.round(Number(digits) * (MS_BY_UNIT[unit] ?? 0));
}

/** "8M", "4MiB": bytes. "auto": null. */
export function parseWindow(text: string): number | null {
  if (text === "auto") return null;
  const bytes = parseSize(text);
  if (bytes >= WINDOW_BYTES_LEAST && bytes <= WINDOW_BYTES_MOST) return bytes;
  throw new InvalidArgumentError("A window is auto, or a size from 16K to 256M.");
}

/** "50M", "50MiB/s": bytes a second. "unlimited": null. */
export function parseRate(text: string): number | null {
  if (text === "unlimited") return null;
  const rate = parseSize(text.replace(/\/s$/, ""));
  if (rate > 0) return rate;
  throw new InvalidArgumentError("A rate of nothing would never end; `blockferry pause` stops the copy.");
}
