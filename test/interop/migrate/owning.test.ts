/** Whose a disk is: calling off, giving back, taking back, and who is refused meanwhile. */
import { existsSync, writeFileSync } from "node:fs";
import { connect, createServer } from "node:net";
import { text } from "node:stream/consumers";
import { expect, test } from "vitest";
import { blockferry } from "../../support/clone-process.ts";
import { pattern, type Region } from "../../support/patterns.ts";
import { run } from "../../support/run.ts";
import { tempDir } from "../../support/temp-dir.ts";
import { MiB } from "../serve/layout.ts";
import { linkOf, type MigrationProcess, Rig } from "./rig.ts";

const SIZE = 8 * MiB;
const REGIONS: readonly Region[] = [{ offset: 0, length: 6 * MiB, salt: 3 }];

async function moveAll(rig: Rig, source: MigrationProcess): Promise<void> {
  await using dest = await rig.dest(await linkOf(source), {}, "c");
  await dest.switchover();
  await dest.reached("complete");
  expect(await dest.stop()).toBe(0);
  expect((await run(["cmp", rig.image("a"), rig.image("c")])).status).toBe(0);
}

test("a migration that is called off leaves nothing at the destination, and the next one succeeds", async () => {
  using folder = tempDir();
  const rig = new Rig(folder);
  rig.makeDisks(SIZE, REGIONS);
  await using source = await rig.source();
  // In setup there is nobody yet.
  await source.call("cancel", { reason: "a test" });
  for (const [mode, asked] of [
    ["hybrid", "source"],
    ["hybrid", "dest"],
    // Never ready: it pulls next to nothing.
    ["precopy", "source"],
  ] as const) {
    const flags = mode === "precopy" ? ["--mode", mode, "--rate", "64K"] : ["--mode", mode];
    await using dest = await rig.dest(await linkOf(source), { flags });
    if (mode === "hybrid") await dest.reached("ready");
    await (asked === "source" ? source : dest).call("cancel", { reason: "a test" });
    expect(await dest.ended).toBe(2);
    expect(dest.output).toContain("called off");
    for (const left of ["", ".map", ".log", ".owner"]) expect(existsSync(`${rig.image("b")}${left}`)).toBe(false);
    await source.expectPhase("setup");
    await using client = await source.open({ exportName: "vda" });
    await client.write(0, pattern(0, 4096, 3));
  }
  await moveAll(rig, source);
});

test("until its guest has written, a destination gives the disks back; afterwards it does not", async () => {
  using folder = tempDir();
  const rig = new Rig(folder);
  rig.makeDisks(SIZE, REGIONS);
  await using source = await rig.source();
  {
    await using dest = await rig.dest(await linkOf(source), { flags: ["--rate", "1M"] });
    await dest.switchover();
    await using client = await source.open({ exportName: "vda" });
    // Held, until it is clear whose the disk is.
    const held = client.write(4096, pattern(4096, 4096, 5));
    await source.call("cancel", { reason: "a test" });
    await held;
    expect(await dest.ended).toBe(2);
  }
  await using dest = await rig.dest(await linkOf(source), { flags: ["--rate", "1M"] });
  await dest.switchover();
  await using client = await dest.open({ exportName: "vda" });
  const found = Buffer.alloc(4096);
  await client.read(4096, found);
  expect(found.equals(pattern(4096, 4096, 5))).toBe(true);
  await client.write(0, pattern(0, 4096, 6));
  await expect.poll(async () => (await source.status()).migration?.destinationWrote).toBe(true);
  await expect(source.call("cancel", { reason: "a test" })).rejects.toMatchObject({ code: "written" });
});

test("an image that was given away is refused by everybody, until the disks are reclaimed", async () => {
  using folder = tempDir();
  const rig = new Rig(folder);
  rig.makeDisks(SIZE, REGIONS);
  await using source = await rig.source();
  const address = await linkOf(source);
  await using dest = await rig.dest(address, { flags: ["--rate", "512K"] });
  await dest.switchover();
  expect(await source.stop()).toBe(0);
  const image = rig.image("a");
  for (const words of [
    ["serve", image],
    ["image", "info", image],
    ["image", "map", image],
    ["clone", "nbd://127.0.0.1:1/", image],
  ]) {
    const { status, stderr } = await blockferry(...words);
    expect([words[0], status]).toEqual([words[0], 75]);
    expect(stderr).toContain("was given to destination");
    expect(stderr).toContain("--state-dir");
  }
  await dest.kill();
  const unfinished = await blockferry("image", "info", rig.image("b"));
  expect(unfinished.status).toBe(75);
  expect(unfinished.stderr).toContain("blockferry dest");
  await using again = await rig.source();
  expect(await again.phase).toBe("granted");
  const refused = await again.tryAsk("reclaim");
  expect(refused.status).toBe(64);
  expect(refused.stderr).toContain("would be lost");
  await again.ask("reclaim", "--destination-is-fenced");
  await moveAll(rig, again);
});

test("the link takes whoever has the key, and nobody else; off loopback it wants one", async () => {
  using folder = tempDir();
  const rig = new Rig(folder);
  rig.makeDisks(SIZE, REGIONS);
  const key = (name: string, digit: string): string => {
    writeFileSync(folder.file(name), `blockferry:${digit.repeat(64)}\n`, { mode: 0o600 });
    return folder.file(name);
  };
  const [right, wrong] = [key("right.psk", "1"), key("wrong.psk", "2")];
  await using source = await rig.source({ flags: ["--tls-psk", right] });
  const address = await linkOf(source);
  expect((await rig.runDest(address)).status).toBe(78);
  expect((await rig.runDest(address, { flags: ["--tls-psk", wrong] })).status).toBe(78);
  expect((await rig.runDest("192.0.2.1:7000")).status).toBe(64);
  const exposed = await blockferry("source", "--link", "0.0.0.0:0", `vda=${rig.image("a")}`);
  expect(exposed.status).toBe(64);
  expect(exposed.stderr).toContain("without TLS");
  await using dest = await rig.dest(address, { flags: ["--tls-psk", right] });
  await dest.switchover();
  await dest.reached("complete");
  expect(await dest.stop()).toBe(0);
  expect((await run(["cmp", rig.image("a"), rig.image("b")])).status).toBe(0);
});

test("a tunnel carries somebody else's bytes both ways, over the same link", async () => {
  using folder = tempDir();
  const rig = new Rig(folder);
  rig.makeDisks(SIZE, REGIONS);
  const [near, far] = [folder.file("near"), folder.file("far")];
  const sent = pattern(0, 3 * MiB, 9);
  const arrived = Promise.withResolvers<Buffer>();
  const server = createServer({ allowHalfOpen: true }, (socket) => {
    const parts: Buffer[] = [];
    socket.on("data", (bytes: Buffer) => parts.push(bytes));
    socket.on("end", () => {
      arrived.resolve(Buffer.concat(parts));
      socket.end("thanks");
    });
  });
  await new Promise<void>((resolve) => server.listen(far, resolve));
  await using source = await rig.source({ flags: ["--tunnel", `ram=unix:${near}`] });
  await using _dest = await rig.dest(await linkOf(source), { flags: ["--tunnel", `ram=unix:${far}`] });
  const socket = connect({ path: near, allowHalfOpen: true });
  socket.end(sent);
  expect(await text(socket)).toBe("thanks");
  expect((await arrived.promise).equals(sent)).toBe(true);
  server.close();
});

test("a tunnel goes on after the last block has come", async () => {
  using folder = tempDir();
  const rig = new Rig(folder);
  rig.makeDisks(SIZE, REGIONS);
  const [near, far] = [folder.file("near"), folder.file("far")];
  const server = createServer((socket) => socket.pipe(socket));
  await new Promise<void>((resolve) => server.listen(far, resolve));
  await using source = await rig.source({ flags: ["--tunnel", `ram=unix:${near}`] });
  await using dest = await rig.dest(await linkOf(source), { flags: ["--tunnel", `ram=unix:${far}`] });
  const socket = connect(near);
  const echoed = async (byte: string): Promise<string> => {
    socket.write(byte);
    return await new Promise((resolve) => socket.once("data", (bytes) => resolve(bytes.toString())));
  };
  expect(await echoed("a")).toBe("a");
  await dest.switchover();
  await dest.reached("complete");
  expect(await echoed("b")).toBe("b");
  expect((await dest.status()).migration?.link.state).toBe("connected");
  socket.destroy();
  await expect.poll(async () => (await dest.status()).migration?.link.state).toBe("closed");
  server.close();
});

test("what is no source is told apart from one that does not answer", async () => {
  using folder = tempDir();
  const rig = new Rig(folder);
  rig.makeDisks(SIZE, REGIONS);
  const nobody = await rig.runDest(`unix:${folder.file("nobody")}`);
  expect(nobody.status).toBe(69);
  await using source = await rig.source();
  const plain = await rig.runDest(`unix:${rig.socket("a")}`);
  expect(plain.status).toBe(69);
  expect(plain.stderr).toContain("blockferry source");
  const other = await rig.runDest(await linkOf(source), { flags: ["--disk", `vdz=${folder.file("z.raw")}`] });
  expect(other.status).toBe(69);
});
