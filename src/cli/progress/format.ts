/** Sizes, rates and durations as people read them, and the lines of progress that are made of them. All pure. */

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];

/** "0 B", "4.0 KiB", "12.4 GiB", "182 MiB": binary units; three digits at least, one of them behind the point below 100. */
export function formatSize(bytes: number): string {
  let unit = 0;
  let scaled = bytes;
  while (unit < UNITS.length - 1 && scaled >= 1024) {
    scaled /= 1024;
    unit++;
  }
  // 1023.7 would be rounded to 1024.
  if (unit > 0 && unit < UNITS.length - 1 && Math.round(scaled) >= 1024) {
    scaled /= 1024;
    unit++;
  }
  const digits = unit === 0 || scaled >= 99.95 ? 0 : 1;
  return `${scaled.toFixed(digits)} ${UNITS[unit]}`;
}

export function formatRate(bytesPerSecond: number): string {
  return `${formatSize(bytesPerSecond)}/s`;
}

/** "0:02:31"; hours are not limited. */
export function formatDuration(seconds: number): string {
  const whole = Math.max(0, Math.round(seconds));
  const two = (value: number): string => String(value).padStart(2, "0");
  return `${Math.floor(whole / 3600)}:${two(Math.floor(whole / 60) % 60)}:${two(whole % 60)}`;
}

/** In percent, rounded down: 100 means all of it. An empty disk is complete. */
export function percentOf(part: number, all: number): number {
  return all === 0 ? 100 : Math.min(100, Math.floor((part / all) * 1000) / 10);
}

export interface Progress {
  readonly localBytes: number;
  readonly sizeBytes: number;
  readonly rateBytesPerSecond: number;
  readonly etaSeconds: number | null;
  readonly state: "hydrating" | "paused" | "stalled" | "hydrated" | "failed";
  readonly stalledReason: string | null;
}

/** `12.4 GiB / 40.0 GiB  31.0%  182 MiB/s  ETA 0:02:31` */
export function progressLine(progress: Progress): string {
  const { localBytes, sizeBytes } = progress;
  const amount = `${formatSize(localBytes)} / ${formatSize(sizeBytes)}`;
  return `${amount}  ${percentOf(localBytes, sizeBytes).toFixed(1)}%  ${pace(progress)}`;
}

/** One line of JSON, without its newline. Keys are a contract. */
export function progressJson(progress: Progress): string {
  const { localBytes, sizeBytes, rateBytesPerSecond, etaSeconds, state, stalledReason } = progress;
  const percent = percentOf(localBytes, sizeBytes);
  const rate = Math.round(rateBytesPerSecond);
  return JSON.stringify({ localBytes, sizeBytes, percent, rateBytesPerSecond: rate, etaSeconds, state, stalledReason });
}

/** As nbdcopy writes it to a file descriptor: `31/100`. */
export function progressHundredths({ localBytes, sizeBytes }: Progress): string {
  return `${Math.floor(percentOf(localBytes, sizeBytes))}/100`;
}

const BAR_COLUMNS_MIN = 10;
const BAR_COLUMNS_MAX = 50;

/** One line for a terminal of `columns`: `[####------]  12.4 GiB / …`; the bar gives way where there is no room. */
export function progressBar(progress: Progress, columns: number): string {
  const line = progressLine(progress);
  // The last column stays free: some terminals go to the next line when it is written to.
  const room = Math.min(columns - 1 - line.length - 4, BAR_COLUMNS_MAX);
  if (room < BAR_COLUMNS_MIN) return line.slice(0, Math.max(0, columns - 1));
  const full = Math.floor((percentOf(progress.localBytes, progress.sizeBytes) / 100) * room);
  return `[${"#".repeat(full)}${"-".repeat(room - full)}]  ${line}`;
}

function pace(progress: Progress): string {
  switch (progress.state) {
    case "hydrating": {
      const eta = progress.etaSeconds === null ? "-:--:--" : formatDuration(progress.etaSeconds);
      return `${formatRate(progress.rateBytesPerSecond)}  ETA ${eta}`;
    }
    case "stalled":
      return progress.stalledReason === null ? "stalled" : `stalled: ${progress.stalledReason}`;
    case "paused":
    case "hydrated":
    case "failed":
      return progress.state;
  }
}
