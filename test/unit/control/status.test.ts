/** The status model: what is accepted, what is not, and that a full one fits a message. */
import { expect, test } from "vitest";
import { encodeMessage } from "../../../src/control/frame.ts";
import { DiskStatus, Status } from "../../../src/control/status.ts";
import { cloneStatus } from "./statuses.ts";

test("a status is the same after JSON, and after its schema", () => {
  const status = cloneStatus();
  expect(Status.parse(JSON.parse(JSON.stringify(status)))).toEqual(status);
});

test("keys of a newer instance do no harm; missing or impossible ones are an error", () => {
  const status = cloneStatus();
  expect(Status.parse({ ...status, novelty: 1 })).toEqual(status);
  expect(Status.safeParse({ ...status, pid: undefined }).success).toBe(false);
  expect(Status.safeParse({ ...status, state: "dancing" }).success).toBe(false);
  const [disk] = status.disks;
  expect(DiskStatus.safeParse({ ...disk, localBytes: -1 }).success).toBe(false);
  expect(DiskStatus.safeParse({ ...disk, sizeBytes: 2 ** 53 }).success).toBe(false);
  expect(DiskStatus.safeParse({ ...disk, sizeBytes: 1.5 }).success).toBe(false);
  expect(DiskStatus.safeParse({ ...disk, localBytes: "12" }).success).toBe(false);
});

test("sixteen disks, each with a full list of errors, fit a message", () => {
  const status = cloneStatus();
  const [disk] = status.disks;
  const { hydration } = disk as DiskStatus;
  const error = { offset: 2 ** 52, length: 2 ** 33, code: "EIO", count: 2 ** 31 };
  const broken = { ...disk, hydration: { ...hydration, errors: Array.from({ length: 16 }, () => error) } };
  const large = Status.parse({ ...status, disks: Array.from({ length: 16 }, () => broken) });
  expect(encodeMessage({ id: 1, result: large }).length).toBeLessThan(64 * 1024);
});
