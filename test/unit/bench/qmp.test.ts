import { createServer, type Socket } from "node:net";
import { join } from "node:path";
import { expect, onTestFinished, test } from "vitest";
import { temporaryFolder } from "../../../bench/lib/process.ts";
import { QmpClient } from "../../../bench/lib/qmp.ts";

const GREETING = '{"QMP": {"version": {}, "capabilities": []}}\r\n';

interface Command {
  readonly execute: string;
  readonly arguments: unknown;
}

/** A monitor that greets, and leaves every command to `answer`. */
async function monitor(answer: (socket: Socket, command: Command) => void): Promise<string> {
  const folder = temporaryFolder();
  const path = join(folder.path, "qmp");
  const server = createServer((socket) => {
    socket.write(GREETING);
    socket.setEncoding("utf8").on("data", (text: string) => {
      for (const line of text.trim().split("\n")) answer(socket, JSON.parse(line) as Command);
    });
    socket.on("error", () => {});
  });
  await new Promise<void>((resolve) => server.listen(path, resolve));
  onTestFinished(async () => {
    await new Promise((resolve) => server.close(resolve));
    folder.remove();
  });
  return path;
}

test("commands are answered in order, after the capabilities were agreed on", async () => {
  const path = await monitor((socket, command) => socket.write(`{"return": ${JSON.stringify(command)}}\r\n`));
  await using client = await QmpClient.connect(path);
  const answers = await Promise.all([client.execute("first", { a: 1 }), client.execute("second")]);
  expect(answers).toEqual([
    { execute: "first", arguments: { a: 1 } },
    { execute: "second", arguments: {} },
  ]);
});

test("a refused command rejects with the program's own words", async () => {
  const path = await monitor((socket, { execute }) => {
    const refusal = '{"error": {"class": "GenericError", "desc": "no such device"}}\r\n';
    socket.write(execute === "qmp_capabilities" ? '{"return": {}}\r\n' : refusal);
  });
  await using client = await QmpClient.connect(path);
  await expect(client.execute("block-stream", { device: "x" })).rejects.toThrow("block-stream: no such device");
});

test("an event that comes before the answer, and in two pieces, is taken by whoever waits for it", async () => {
  const path = await monitor((socket, { execute }) => {
    if (execute === "qmp_capabilities") return void socket.write('{"return": {}}\r\n');
    socket.write('{"event": "OTHER", "data": {}}\r\n{"event": "DONE", "da');
    socket.write('ta": {"len": 7}}\r\n{"return": {}}\r\n');
  });
  await using client = await QmpClient.connect(path);
  const done = client.event("DONE");
  expect(await client.execute("go")).toEqual({});
  expect(await done).toEqual({ name: "DONE", data: { len: 7 } });
});

test("whoever waits when the program hangs up is told", async () => {
  const path = await monitor((socket, { execute }) => {
    if (execute === "qmp_capabilities") socket.write('{"return": {}}\r\n');
    else socket.end();
  });
  await using client = await QmpClient.connect(path);
  const done = client.event("DONE");
  const results = await Promise.allSettled([done, client.execute("go")]);
  expect(results.map(({ status }) => status)).toEqual(["rejected", "rejected"]);
  await expect(client.execute("again")).rejects.toThrow(/hung up/);
});

test("nobody there is an error, not a wait", async () => {
  await expect(QmpClient.connect("/nonexistent/qmp")).rejects.toThrow(/ENOENT/);
});
