/** A systemd unit. Pure. Source: systemd.service(5), systemd.exec(5), "COMMAND LINES" and "Specifiers". */
import { usageError } from "../cli-error.ts";
import { EXIT_CONFIG, EXIT_NO, EXIT_USAGE } from "../exit-codes.ts";

const COMMANDS = ["serve", "clone", "source", "dest"];
/** What systemd takes as it is; all else is quoted. */
const PLAIN = /^[A-Za-z0-9_@+=:,./-]+$/;

export interface UnitAround {
  /** Relative names count from here. */
  readonly directory: string;
  /** Absolute path of the program. */
  readonly program: string;
}

export function renderUnit(words: readonly string[], { directory, program }: UnitAround): string {
  const [command = ""] = words;
  if (!COMMANDS.includes(command)) {
    const why = `${JSON.stringify(command)} is no command that runs on`;
    throw usageError("cannot print a unit", why, `begin with ${COMMANDS.join(", ")}, after --`);
  }
  if (words.includes("--fork")) throw usageError("cannot print a unit", "systemd needs no --fork", "leave it out");
  if (words.some((word) => /[\0\n]/.test(word)) || /[\0\n]/.test(directory)) {
    throw usageError("cannot print a unit", "a word has a line break in it", "rename the file");
  }
  // Repeating does not help when the answer is "no", or when the command line or the configuration is bad.
  const final = [EXIT_NO, EXIT_USAGE, EXIT_CONFIG].join(" ");
  return `[Unit]
Description=blockferry ${specifiers(
    words
      .filter((word) => !word.startsWith("-"))
      .slice(0, 2)
      .join(" "),
  )}
Wants=network-online.target
After=network-online.target

[Service]
Type=notify
ExecStart=${[program, ...words].map(unitQuote).join(" ")}
WorkingDirectory=${specifiers(directory)}
Restart=on-failure
RestartSec=2
RestartPreventExitStatus=${final}
RuntimeDirectory=blockferry
RuntimeDirectoryMode=0700
RuntimeDirectoryPreserve=yes
StateDirectory=blockferry
StateDirectoryMode=0700
TimeoutStopSec=60
LimitNOFILE=65536
NoNewPrivileges=yes

[Install]
WantedBy=multi-user.target
`;
}

/** One word of a command line. */
function unitQuote(word: string): string {
  const escaped = specifiers(word).replaceAll("$", "$$$$");
  if (PLAIN.test(word)) return escaped;
  return `"${escaped.replaceAll("\\", "\\\\").replaceAll('"', '\\"')}"`;
}

function specifiers(text: string): string {
  return text.replaceAll("%", "%%");
}
