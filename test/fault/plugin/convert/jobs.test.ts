/** Jobs as processes against the real docker-registry: limits hold, kill -9 of anything leaves nothing, jobs go on or say why not. */
import { randomBytes } from 'node:crypto';
import { existsSync, readFileSync } from 'node:fs';
import { afterAll, afterEach, beforeAll, expect, test } from 'vitest';
import { sha256 } from '../../../../plugin/base/digest.ts';
import { type ConvertOptions, convertRequestSchema } from '../../../../plugin/convert/service.ts';
import { ConvertBench, convertCgroups } from '../../../support/convert-bench.ts';
import { DockerRegistry } from '../../../support/docker-registry.ts';
import { buildImage, type Layer, layerOfEntries, pushImage } from '../../../support/oci-image.ts';
import { killPid } from '../../../support/process.ts';
import { startRegistryProxy } from '../../../support/registry-proxy.ts';
import { waitFor } from '../../../support/wait.ts';

const REQUEST = convertRequestSchema.parse({});
let registry: DockerRegistry;
const stack: AsyncDisposable[] = [];

beforeAll(async () => {
  registry = await DockerRegistry.start();
});
afterEach(async () => {
  for (const resource of stack.splice(0).reverse()) await resource[Symbol.asyncDispose]();
});
afterAll(() => registry[Symbol.asyncDispose]());

async function bench(overrides: Partial<ConvertOptions> = {}): Promise<ConvertBench> {
  const started = await ConvertBench.start(overrides);
  stack.push(started);
  return started;
}

/** The registry behind a slow link, so that a conversion lasts. */
async function slowRegistry(rateBytesPerS: number) {
  const proxy = await startRegistryProxy({ upstream: registry.host, rateBytesPerS });
  stack.push({ [Symbol.asyncDispose]: () => proxy.close() });
  return proxy;
}

/** An image of incompressible layers, pushed; random, so that each test has its own. */
async function push(repository: string, layerBytes: readonly number[], tag = '1') {
  const layers = await Promise.all(
    layerBytes.map((size, i) => layerOfEntries([{ name: `file${i}`, content: randomBytes(size) }], { gzip: true })),
  );
  return pushImage(registry, repository, tag, buildImage(layers));
}

const tagsOf = async (repository: string): Promise<string[]> => {
  const response = await fetch(`${registry.url}/v2/${repository}/tags/list`);
  return ((await response.json()) as { tags: string[] }).tags.sort();
};

test('a job converts in a process of its own, within its cgroup, nice and first to be killed; nothing is left', async () => {
  const image = await push('fault/limits', [3_000_000, 200_000]);
  const proxy = await slowRegistry(1_500_000);
  const b = await bench();
  const job = b.service.convert(`${proxy.host}/fault/limits:1`, REQUEST);
  expect(job).toMatchObject({ state: 'PENDING', targetTag: '1_containerd_accelerated', trigger: 'manual' });
  const { pid } = await b.worker();
  await waitFor(() => b.service.job(job.id).progress.readBytes > 0, { what: 'the first bytes' });
  const cgroups = (await convertCgroups(b.root)).filter((path) => path.includes('job-'));
  expect(cgroups.length).toBeGreaterThan(0);
  for (const path of cgroups) expect(readFileSync(`${path}/cgroup.procs`, 'utf8').split('\n')).toContain(String(pid));
  const limit = cgroups.flatMap((path) => ['memory.max', 'memory.limit_in_bytes'].map((name) => `${path}/${name}`)).map(readIfThere);
  expect(limit.filter(Boolean)).toEqual([String(2 ** 30)]);
  const quota = cgroups.flatMap((path) => ['cpu.max', 'cpu.cfs_quota_us'].map((name) => `${path}/${name}`)).map(readIfThere);
  expect(quota.filter(Boolean).map((text) => text?.split(' ')[0])).toEqual(['200000']);
  expect(readFileSync(`/proc/${pid}/oom_score_adj`, 'utf8').trim()).toBe('700');
  expect(readFileSync(`/proc/${pid}/stat`, 'utf8').split(') ')[1]!.split(' ')[16]).toBe('10');

  const done = await b.succeeded(job.id);
  expect(done.progress).toMatchObject({ layersTotal: 2, layersDone: 2, readBytes: image.layersSizeBytes, imagesDone: 1 });
  expect(done.progress.uploadedBytes).toBe(done.progress.convertedBytes);
  expect([done.attempts, done.sourceDigest]).toEqual([1, image.manifest.digest]);
  expect(await tagsOf('fault/limits')).toContain('1_containerd_accelerated');
  expect(await b.leftovers()).toEqual([]);
});

function readIfThere(path: string): string | undefined {
  return existsSync(path) ? readFileSync(path, 'utf8').trim() : undefined;
}

test('kill -9 of the process: the next attempt goes on above the layers that are uploaded', async () => {
  await push('fault/kill', [300_000, 4_000_000]);
  const proxy = await slowRegistry(2_000_000);
  const b = await bench();
  const { id } = b.service.convert(`${proxy.host}/fault/kill:1`, REQUEST);
  const first = await b.worker();
  await waitFor(() => b.logOf(id).includes('was uploaded'), {
    what: 'the first layer to be uploaded',
    timeoutMs: 60_000,
    details: () => b.logOf(id),
  });
  await killPid(first.pid);
  const done = await b.succeeded(id);
  expect(done).toMatchObject({ attempts: 2, progress: { layersReused: 1, layersDone: 2 } });
  expect(b.logOf(id)).toMatch(
    /its process ended \(SIGKILL\) without a word; the next one begins in 1 s[\s\S]*1 of 2 layers are converted already/,
  );
  expect(await b.leftovers()).toEqual([]);
});

test('a job whose process is killed every time fails and says so; nothing is published', async () => {
  await push('fault/killed', [4_000_000]);
  const proxy = await slowRegistry(500_000);
  const b = await bench();
  const { id } = b.service.convert(`${proxy.host}/fault/killed:1`, REQUEST);
  // Two attempts of four, so that the test does not wait for the longer pauses; the unit test has all of them.
  let last = 0;
  for (let attempt = 1; attempt <= 2; attempt += 1) {
    last = (await b.worker(last)).pid;
    await killPid(last);
    // That it waits is over within a second; the log keeps it.
    await waitFor(() => b.logOf(id).includes(`attempt ${attempt}: `), { what: 'the job to wait again', details: () => b.logOf(id) });
  }
  expect(await b.service.cancel(id)).toMatchObject({ state: 'FAILED', failure: { code: 'Canceled' } });
  expect(await tagsOf('fault/killed')).toEqual(['1']);
  expect(await b.leftovers()).toEqual([]);
});

test('the control plane dies: its jobs’ processes die with it, and the next one takes the jobs up', async () => {
  await push('fault/restart', [300_000, 4_000_000]);
  const proxy = await slowRegistry(2_000_000);
  const b = await bench();
  const { id } = b.service.convert(`${proxy.host}/fault/restart:1`, REQUEST);
  const { pid } = await b.worker();
  await waitFor(() => b.logOf(id).includes('was uploaded'), { what: 'the first layer to be uploaded', timeoutMs: 60_000 });
  // An orderly end; the end-to-end test kills the real control plane.
  await b.stop();
  expect(b.workers().map((p) => p.pid)).not.toContain(pid);
  await b.startAgain();
  expect(await b.succeeded(id)).toMatchObject({ progress: { layersReused: 1 } });
});

test('cancel is honoured within a second, whatever the process does; a stopped one too', async () => {
  await push('fault/cancel', [8_000_000]);
  const proxy = await slowRegistry(500_000);
  const b = await bench();
  for (const isStopped of [false, true]) {
    const { id } = b.service.convert(`${proxy.host}/fault/cancel:1`, REQUEST);
    const { pid } = await b.worker();
    await waitFor(() => b.service.job(id).progress.readBytes > 0, { what: 'the first bytes' });
    if (isStopped) process.kill(pid, 'SIGSTOP');
    const beginMs = performance.now();
    const canceled = await b.service.cancel(id);
    // The goal is a second; on a busy machine that is longer, and an attempt that nobody ends goes on for sixteen.
    expect(performance.now() - beginMs).toBeLessThan(10_000);
    expect(canceled).toMatchObject({ state: 'FAILED', failure: { code: 'Canceled' } });
    expect(await b.leftovers()).toEqual([]);
    await expect(b.service.cancel(id)).rejects.toMatchObject({ code: 'FailedPrecondition' });
  }
  expect(await tagsOf('fault/cancel')).toEqual(['1']);
});

test('a job that needs more disk than it may have fails with both numbers; its staging is gone', async () => {
  await push('fault/disk', [12_000_000, 12_000_000]);
  const proxy = await slowRegistry(4_000_000);
  const b = await bench({ stagingBytes: 4_000_000 });
  const { id } = b.service.convert(`${proxy.host}/fault/disk:1`, REQUEST);
  const failed = await b.ended(id);
  expect(failed).toMatchObject({ state: 'FAILED', failure: { code: 'ResourceExhausted' } });
  expect(failed.failure?.message).toMatch(/staging directory holds \d+ bytes, at most 4000000 are allowed/);
  expect(await tagsOf('fault/disk')).toEqual(['1']);
  expect(await b.leftovers()).toEqual([]);
});

test('bad layers: the job says which layer, entry and byte, nothing is published, nothing is left', async () => {
  const good = await layerOfEntries([{ name: 'good', content: randomBytes(20_000) }], { gzip: true });
  const ofEntries = (...entries: Parameters<typeof layerOfEntries>[0]) => layerOfEntries(entries, { gzip: true });
  const cutBlob = Buffer.from(good.blob as Buffer).subarray(0, 10_000);
  const bad: [string, Layer, string, RegExp][] = [
    [
      'cut',
      { ...good, blob: cutBlob, digest: sha256(cutBlob), sizeBytes: cutBlob.length },
      'DataLoss',
      /gzip stream is damaged after byte \d+ of the tar/,
    ],
    ['diff-id', { ...good, diffId: sha256('another tar') }, 'DataLoss', /diffID is sha256:\w+, expected sha256:/],
    [
      'climbs',
      await ofEntries({ name: '../../etc/passwd', content: 'x' }),
      'InvalidArgument',
      /\.\.\/\.\.\/etc\/passwd: at byte 0: path climbs above the root/,
    ],
    [
      'link',
      await ofEntries({ name: 'to', target: '/etc' }, { name: 'to/passwd', content: 'x' }),
      'InvalidArgument',
      /to\/passwd: at byte 512: its parent "to" is a symbolic link/,
    ],
    [
      'type',
      { ...good, mediaType: 'application/vnd.example.layer.v1' },
      'InvalidArgument',
      /has the media type application\/vnd\.example\.layer\.v1/,
    ],
  ];
  const b = await bench();
  for (const [name, layer, code, message] of bad) {
    const repository = `fault/bad-${name}`;
    await pushImage(registry, repository, '1', buildImage([good, layer]));
    const { id } = b.service.convert(`${registry.host}/${repository}:1`, REQUEST);
    const { state, failure } = await b.ended(id);
    expect({ name, state, failure }).toEqual({ name, state: 'FAILED', failure: { code, message: expect.stringMatching(message) } });
    expect(failure?.message).toContain(layer.digest);
    expect(b.logOf(id)).toContain(failure?.message);
    expect(await tagsOf(repository)).toEqual(['1']);
  }
  expect(await b.leftovers()).toEqual([]);
});

test('a job that takes too long is given up', async () => {
  await push('fault/slow', [4_000_000]);
  const proxy = await slowRegistry(200_000);
  const b = await bench({ jobDeadlineMs: 1_500 });
  const { id } = b.service.convert(`${proxy.host}/fault/slow:1`, REQUEST);
  expect((await b.ended(id)).failure).toMatchObject({ code: 'DeadlineExceeded', message: expect.stringMatching(/not done within 1.5 s/) });
});

test('a job that needs more memory than its cgroup has fails and names the limit', async () => {
  await push('fault/memory', [2_000_000]);
  // Below what the program itself takes: the kernel kills it.
  const b = await bench({ memoryBytes: 40 * 2 ** 20 });
  const { id } = b.service.convert(`${registry.host}/fault/memory:1`, REQUEST);
  const failed = await b.ended(id);
  expect(failed.failure).toMatchObject({ code: 'ResourceExhausted', message: expect.stringMatching(/convert\.memory_bytes/) });
  expect(await b.leftovers()).toEqual([]);
});

test('concurrency is what was configured; the others wait their turn', async () => {
  for (const n of [1, 2, 3]) await push(`fault/queue${n}`, [1_000_000]);
  const proxy = await slowRegistry(2_000_000);
  const b = await bench({ concurrency: 2 });
  const ids = [1, 2, 3].map((n) => b.service.convert(`${proxy.host}/fault/queue${n}:1`, REQUEST).id);
  let most = 0;
  await waitFor(
    () => {
      const states = ids.map((id) => b.service.job(id).state);
      most = Math.max(most, states.filter((state) => state === 'BUILDING').length);
      return states.every((state) => state === 'SUCCESS');
    },
    { what: 'all three', timeoutMs: 60_000, details: () => ids.map((id) => b.logOf(id)).join('\n') },
  );
  expect(most).toBe(2);
});

test('a registry that goes away in the middle: the job waits and goes on when it is back', async () => {
  await push('fault/away', [300_000, 3_000_000]);
  const proxy = await slowRegistry(1_500_000);
  const b = await bench();
  const { id } = b.service.convert(`${proxy.host}/fault/away:1`, REQUEST);
  await waitFor(() => b.logOf(id).includes('was uploaded'), {
    what: 'the first layer to be uploaded',
    timeoutMs: 60_000,
    details: () => b.logOf(id),
  });
  await registry.stop();
  try {
    await waitFor(() => b.service.job(id).state === 'PENDING', {
      what: 'the attempt to end',
      timeoutMs: 60_000,
      details: () => b.logOf(id),
    });
  } finally {
    await registry.startAgain();
  }
  expect(await b.succeeded(id)).toMatchObject({ progress: { layersReused: 1 } });
});
