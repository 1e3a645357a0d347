/** One sample of the case in which a client whose data is cached has a neighbour whose data is not. */
import type { FioJob } from "../lib/fio.ts";
import { type NbdPeer, serve } from "../lib/peers.ts";
import { makeCold } from "../lib/prepare.ts";
import { percentile, withOmittedWaits } from "../lib/stats.ts";
import type { Measurement } from "../lib/suite.ts";
import { verifyServer } from "../lib/verify.ts";
import { costValues, type Disk, observe, type Times } from "./nbd-cases.ts";

const READS_PER_SECOND = 1000;
/** Slow enough that the cold region outlasts the sample; the same for everybody. */
const COLD_RATE = "128m";
const COLD_BLOCK_BYTES = 256 << 10;
const COLD_DEPTH = 4;

/**
 * First the cached client alone, half of the time, then beside the cold one: from one and the same server, which has been
 * run in at full speed, for at this rate a server with a JIT would spend the whole sample compiling.
 */
export async function measureReadsBesideColdReader(peer: NbdPeer, disk: Disk, times: Times): Promise<Measurement> {
  await makeCold(disk.path, disk.cached);
  await using server = await serve(peer, { image: disk.path, readOnly: true, directory: disk.directory });
  const runIn: FioJob = {
    ...{ name: "cached", rw: "randread", blockBytes: 4096, depth: 1 },
    ...{ offset: disk.cached.offset, sizeBytes: disk.cached.length },
  };
  const cached: FioJob = { ...runIn, keepLatencies: true, options: { rate_iops: READS_PER_SECOND } };
  const cold: FioJob = {
    ...{ name: "cold", rw: "read", blockBytes: COLD_BLOCK_BYTES, depth: COLD_DEPTH },
    ...{ offset: disk.cold.offset, sizeBytes: disk.cold.length },
    options: { rate: COLD_RATE },
  };
  await observe(server, disk, { rampMs: 0, measureMs: times.rampMs / 2 }, [runIn]);
  const rampMs = times.rampMs / 4;
  const quiet = await observe(server, disk, { rampMs, measureMs: times.measureMs / 2 }, [cached]);
  const loaded = await observe(server, disk, { rampMs, measureMs: times.measureMs }, [cached, cold]);
  const coldBytes = (loaded.jobs[1]?.main.count ?? 0) * COLD_BLOCK_BYTES;
  if (loaded.diskReadBytes < coldBytes) {
    throw new Error(`of ${coldBytes} bytes only ${loaded.diskReadBytes} came from the disk: not a cold reader`);
  }
  await verifyServer(server.socketPath, { ...disk.cached, sizeBytes: disk.sizeBytes }, disk.original);
  await server.stop();

  const before = asScheduled(quiet.jobs[0].latenciesUs);
  const beside = asScheduled(loaded.jobs[0].latenciesUs);
  const [quietP99Us, p99Us] = [percentile(before, 0.99), percentile(beside, 0.99)];
  return {
    values: {
      p99Us,
      quietP99Us,
      slowdown: p99Us / quietP99Us,
      p50Us: percentile(beside, 0.5),
      quietP50Us: percentile(before, 0.5),
      p999Us: percentile(beside, 0.999),
      maxUs: percentile(beside, 1),
      coldBytesPerSecond: loaded.jobs[1]?.main.bytesPerSecond ?? 0,
      ...costValues(loaded),
    },
  };
}

/** A stall would otherwise count as one slow read, however many reads were due while it lasted. */
function asScheduled(latenciesUs: readonly number[] = []): number[] {
  return withOmittedWaits(latenciesUs, 1e6 / READS_PER_SECOND);
}
