/**
 * One start of a container, timed as people see it: pull, start, first output; with the bytes that the registry had sent by then. Ours.
 */
import { setTimeout as delay } from 'node:timers/promises';
import type { Containerd } from './containerd.ts';
import type { DockerRegistry } from './docker-registry.ts';
import { lazyPull } from './lazy-pull.ts';
import { Daemon, readTail } from './process.ts';
import { Scratch } from './scratch.ts';
import { waitFor } from './wait.ts';

export interface TimedStartOptions {
  registry: DockerRegistry;
  containerd: Containerd;
  snapshotter: string;
  reference: string;
  /** The container's name in containerd; free again afterwards. */
  name: string;
  /** What the program's output must match to count as started. */
  ready: RegExp;
  timeoutMs?: number;
}

export interface TimedStart {
  /** 0 when the image was there already. */
  pullMs: number;
  /** From the end of the pull to the program's first output. */
  firstOutputMs: number;
  /** The matching output. */
  output: string;
  /** Blob bytes that the registry had sent by the end of the pull, and by the first output. */
  bytesAtPull: number;
  bytesAtFirstOutput: number;
}

/** Pulls with snapshot labels (unless the snapshotter has the image), runs the image's own program until it prints, and removes it. */
export async function timedStart(options: TimedStartOptions): Promise<TimedStart> {
  const { registry, containerd, snapshotter, reference, name, ready, timeoutMs = 120_000 } = options;
  await using scratch = await Scratch.create('start');
  await registry.forget();
  const { elapsedMs: pullMs } = await lazyPull(containerd, reference, { snapshotter, timeoutMs });
  const bytesAtPull = await registry.blobBytesSent();
  const startedAt = performance.now();
  await using container = await Daemon.start({
    name: `container ${name}`,
    command: containerd.binaries.ctr,
    args: containerd.ctrArgs(['run', '--rm', '--snapshotter', snapshotter, reference, name]),
    logPath: scratch.join('output'),
  });
  const output = await waitFor(
    () => {
      const line = readTail(container.logPath, 1000)
        .split('\n')
        .find((one) => ready.test(one));
      if (line === undefined && container.endedHow !== undefined) return 'ended';
      return line;
    },
    { what: `the first output of ${reference}`, timeoutMs, everyMs: 5, details: () => `${container.logTail()}\n${containerd.logTail()}` },
  );
  if (output === 'ended') throw new Error(`${reference} ended (${container.endedHow}) before it was ready\n${container.logTail()}`);
  const firstOutputMs = performance.now() - startedAt;
  const bytesAtFirstOutput = await registry.blobBytesSent();
  await removeTask(containerd, name, container);
  return { pullMs, firstOutputMs, output, bytesAtPull, bytesAtFirstOutput };
}

/** A program that ends by itself is given a moment; one that stays is killed through containerd. */
async function removeTask(containerd: Containerd, name: string, container: Daemon): Promise<void> {
  const ended = await Promise.race([container.ended.then(() => true), delay(2_000, false, { ref: false })]);
  if (ended) return;
  await containerd.ctr(['tasks', 'kill', '--signal', 'SIGKILL', name], { okCodes: [0, 1] });
  await waitFor(() => container.endedHow !== undefined, { what: `container ${name} to end`, details: () => container.logTail() });
}
