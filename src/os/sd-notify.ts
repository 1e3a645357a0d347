/**
 * Tells systemd how a service of `Type=notify` is doing: datagrams to the socket that `NOTIFY_SOCKET` names. Node has no
 * datagram sockets for unix paths, so the three calls are made natively; without koffi, the program `systemd-notify`
 * stands in (the unit then needs `NotifyAccess=all`). Source: sd_notify(3).
 */
import { spawn } from "node:child_process";
import { loadNative, type Native } from "./native.ts";

const AF_UNIX = 1;
const SOCK_DGRAM_CLOEXEC = 2 | 0o2000000;
const MSG_NOSIGNAL = 0x4000;
const MSG_DONTWAIT = 0x40;
/** sockaddr_un: u16 family, then the path. */
const SUN_PATH_AT = 2;
const SUN_PATH_BYTES_MAX = 108;

/** Sends lines such as "READY=1" or "STATUS=…". Does nothing when `socketPath` is undefined; never fails. */
export function sdNotify(socketPath: string | undefined, lines: readonly string[]): void {
  if (socketPath === undefined || socketPath === "") return;
  const result = loadNative();
  const sent = result.state === "loaded" && sendDatagram(result.native, socketPath, lines.join("\n"));
  if (sent) return;
  const helper = spawn("systemd-notify", [`--pid=${process.pid}`, ...lines], { stdio: "ignore" });
  helper.on("error", () => {});
}

/** The variable is for us alone: whoever we start must not speak in our name. */
export function takeNotifySocket(env: Record<string, string | undefined>): string | undefined {
  const path = env["NOTIFY_SOCKET"];
  delete env["NOTIFY_SOCKET"];
  return path;
}

function sendDatagram(native: Native, socketPath: string, text: string): boolean {
  const socket = native.bind("socket", "int", ["int", "int", "int"]);
  const sendto = native.bind("sendto", "int64_t", ["int", "uintptr_t", "uintptr_t", "int", "uintptr_t", "uint32_t"]);
  const close = native.bind("close", "int", ["int"]);
  const path = Buffer.from(socketPath, "utf8");
  if (!socket || !sendto || !close || path.length >= SUN_PATH_BYTES_MAX) return false;
  const address = Buffer.alloc(SUN_PATH_AT + path.length);
  address.writeUInt16LE(AF_UNIX, 0);
  path.copy(address, SUN_PATH_AT);
  // "@name" is a name in the abstract namespace, written with a NUL.
  if (socketPath.startsWith("@")) address[SUN_PATH_AT] = 0;
  const message = Buffer.from(text, "utf8");
  const fd = socket(AF_UNIX, SOCK_DGRAM_CLOEXEC, 0);
  if (fd < 0) return false;
  const sent = sendto(
    fd,
    addressOf(native, message),
    message.length,
    MSG_DONTWAIT | MSG_NOSIGNAL,
    addressOf(native, address),
    address.length,
  );
  close(fd);
  return sent === message.length;
}

/** Small buffers are slices of a shared one. */
function addressOf(native: Native, bytes: Buffer): number {
  return native.addressOf(bytes.buffer) + bytes.byteOffset;
}
