/** The process that makes an image: killed, or out of memory, it is a failure with its reason, and nothing of it is left. */
import { existsSync, readdirSync } from 'node:fs';
import { createServer } from 'node:net';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { parseConfig } from '../../../../plugin/base/config/config.ts';
import { sha256 } from '../../../../plugin/base/digest.ts';
import { silentLogger } from '../../../../plugin/base/log.ts';
import { makeImage } from '../../../../plugin/cache/create/image-process.ts';
import { CgroupParent, cgroupNameOf, findHierarchies } from '../../../../plugin/kernel/cgroup.ts';
import { WorkerProcess } from '../../../../plugin/kernel/worker-process.ts';
import { allProcesses, killPid } from '../../../support/process.ts';
import { Scratch } from '../../../support/scratch.ts';
import { waitFor } from '../../../support/wait.ts';

const MIB = 2 ** 20;

let scratch: Scratch;
let stack: AsyncDisposableStack;
beforeEach(async () => {
  stack = new AsyncDisposableStack();
  scratch = stack.use(await Scratch.create('image-process'));
});
afterEach(() => stack.disposeAsync());

/** A socket that takes connections and never answers: a containerd that hangs. */
async function silentSocket(): Promise<string> {
  const path = scratch.join('silent.sock');
  const server = createServer((socket) => socket.on('error', () => socket.destroy()));
  await new Promise<void>((resolve) => server.listen(path, resolve));
  stack.defer(() => new Promise<void>((resolve) => server.close(() => resolve())));
  return path;
}

async function start(reference: string, memoryBytes: number) {
  const containerdAddress = await silentSocket();
  const name = cgroupNameOf('cache', scratch.path);
  const hierarchies = await findHierarchies();
  const cgroups = new CgroupParent(name, hierarchies);
  stack.defer(() => cgroups.remove());
  const digest = sha256(reference);
  const work = {
    registry: { registry: parseConfig('', 'defaults').registry, vault: { file: '/x', keyFile: '/x' } },
    access: { credentials: [], plainHttp: [], insecure: [] },
    ...{ containerdAddress, namespace: 'k8s.io', snapshotter: 'overlaybd', lease: 'own', buildLease: 'build' },
    ...{ reference, digest, platformDigest: digest, reservationBytes: MIB, logLevel: 'info' },
  };
  const made = makeImage(
    {
      ...{ name: 'eci-test', work, limits: { cpus: 1, memoryBytes }, deadlineMs: 120_000, signal: new AbortController().signal },
      fetchLayer: async () => ({ path: '/x', fetchedBytes: 0 }),
      onLayer: () => {},
    },
    { cgroups, logger: silentLogger },
  );
  // Looked at when it is wanted; until then it is no unhandled failure.
  const outcome = made.then(
    () => undefined,
    (error: unknown) => error,
  );
  const left = (): string[] =>
    [...hierarchies.values()]
      .map(({ mountPoint }) => `${mountPoint}/${name}`)
      .flatMap((parent) =>
        existsSync(parent)
          ? readdirSync(parent, { withFileTypes: true }).flatMap((entry) => (entry.isDirectory() ? [`${parent}/${entry.name}`] : []))
          : [],
      );
  const worker = (): number | undefined => allProcesses().find(({ args, state }) => state !== 'Z' && args.includes(reference))?.pid;
  return { outcome, left, worker };
}

test('a process that is killed is a failure that passes, named as what it was', async () => {
  const { outcome, left, worker } = await start('registry.example/killed:1', 1024 * MIB);
  await killPid(await waitFor(worker, { what: 'the process', timeoutMs: 30_000 }));
  expect(await outcome).toMatchObject({ code: 'Unavailable', message: expect.stringContaining('SIGKILL') });
  expect(left()).toEqual([]);
  expect(worker()).toBeUndefined();
});

test('a process that needs more memory than its cgroup has is ended, and the limit is named', async () => {
  // Below what the program itself takes: the kernel kills it.
  const { outcome, left, worker } = await start('registry.example/memory:1', 40 * MIB);
  expect(await outcome).toMatchObject({ code: 'ResourceExhausted', message: expect.stringMatching(/caches\.memory_bytes/) });
  expect(left()).toEqual([]);
  expect(worker()).toBeUndefined();
});

test('a process whose own heap is full is told as out of memory too', async () => {
  const script = await scratch.file(
    'greedy.ts',
    'const all: number[][] = [];\nfor (;;) all.push(new Array(100_000).fill(Math.random()));\n',
  );
  const limits = { cpus: 1, memoryBytes: 16 * MIB };
  const died = ({ ranOutOfMemory, how }: { ranOutOfMemory: boolean; how: string }): Error => new Error(`${ranOutOfMemory} ${how}`);
  const greedy = new WorkerProcess<void>(
    { script, args: [], limits, cgroup: undefined, start: {}, deadlineMs: 120_000, signal: new AbortController().signal },
    { isLate: () => new Error('late'), died },
    () => {},
  );
  await expect(greedy.run()).rejects.toThrow('true SIGABRT');
});
