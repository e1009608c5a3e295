/**
 * B2: containers of the web application of about 1.3 GB from a Ready image cache, the registry stopped: kubelet's question whether the image is
 * here, CreateContainer (which prepares the root file system) and StartContainer through CRI, and the program's first answer. Each form that
 * a cache can hold, and containerd's overlayfs with the image pulled before. The first start finds nothing in the page cache and no device
 * open. Ours.
 */
import { join } from 'node:path';
import { BlockdClient } from '../../../plugin/blockd/client.ts';
import { Containerd } from '../../support/containerd.ts';
import { Cri, type CriPod, readCriLog } from '../../support/cri.ts';
import { DockerRegistry } from '../../support/docker-registry.ts';
import { createCache, waitCache } from '../../support/image-caches.ts';
import { LazyHost } from '../../support/lazy-host.ts';
import { type Image, pushImage } from '../../support/oci-image.ts';
import { pauseImage } from '../../support/small-images.ts';
import { waitFor } from '../../support/wait.ts';
import { webAppImage } from '../../support/web-app-image.ts';
import type { BenchCase } from '../harness/bench-case.ts';
import { convertedImage, indexTwin } from '../harness/converted.ts';
import { dropCaches, median, percentile, timed } from '../harness/measure.ts';
import type { CaseResult } from '../harness/report.ts';
import { READY } from './start.ts';

/** Enough that the 99th percentile is the slowest but none. */
const STARTS = 30;

interface Start {
  /** ImageStatus, CreateContainer, StartContainer. */
  knownMs: number;
  createMs: number;
  startMs: number;
}

interface Sample {
  way: string;
  first: Start;
  later: Start[];
  /** From CreateContainer to the web application's first answer, nothing in the page cache. */
  answerMs: number;
  remoteBytes: number;
}

async function startOnce(cri: Cri, pod: CriPod, image: string, name: string, command: readonly string[]): Promise<Start & { id: string }> {
  const knownMs = await timed(() => cri.images('ImageStatus', { image: { image } }));
  const config = {
    metadata: { name, attempt: 0 },
    image: { image },
    command,
    logPath: `${name}.log`,
    linux: { securityContext: { namespaceOptions: { network: 2 } } },
  };
  let id = '';
  const createMs = await timed(async () => {
    id = String((await cri.runtime('CreateContainer', { podSandboxId: pod.id, config, sandboxConfig: pod.config })).containerId);
  });
  const startMs = await timed(() => cri.runtime('StartContainer', { containerId: id }));
  return { knownMs, createMs, startMs, id };
}

/** Everything of one host whose containerd has the image already. */
async function starts(socket: string, reference: string, fetched: () => Promise<number>): Promise<Omit<Sample, 'way'>> {
  await using cri = await Cri.connect(socket);
  const pod = await cri.runPod('bench');
  const before = await fetched();
  const short = async (name: string): Promise<Start> => {
    const { id, ...start } = await startOnce(cri, pod, reference, name, ['/bin/true']);
    await cri.waitExit(id);
    await cri.removeContainer(id);
    return start;
  };
  dropCaches();
  const first = await short('first');
  const later: Start[] = [];
  for (let n = 0; n < STARTS; n += 1) later.push(await short(`later-${n}`));
  dropCaches();
  const startedAt = performance.now();
  const { id } = await startOnce(cri, pod, reference, 'web', []);
  await waitFor(async () => (await readCriLog(join(pod.logDirectory, 'web.log'))).some(({ text }) => READY.test(text)), {
    what: "the web application's answer",
    timeoutMs: 120_000,
    everyMs: 5,
  });
  const answerMs = performance.now() - startedAt;
  await cri.removeContainer(id);
  return { first, later, answerMs, remoteBytes: (await fetched()) - before };
}

async function fromCache(way: string, image: Image, twin?: Image): Promise<Sample> {
  await using host = await LazyHost.start({ sidecar: { config: { log: { level: 'info' } } } });
  const pushed = await pushImage(host.registry, 'bench/web', 'v1', image);
  if (twin !== undefined) await pushImage(host.registry, 'bench/web', 'v1_accelerated', twin);
  const cache = await createCache(host.sidecar, { imageCacheName: 'bench', images: [pushed.reference] });
  await waitCache(host.sidecar, cache.imageCacheId, 'Ready', 300_000);
  {
    await using cri = await Cri.connect(host.containerd.socket);
    await cri.pullImage(`${host.registry.host}/test/pause:1`);
  }
  await host.registry.stop();
  const blockd = new BlockdClient(join(host.sidecar.run, 'blockd.sock'));
  const fetched = async (): Promise<number> => {
    const { fetch } = await blockd.stats(AbortSignal.timeout(10_000));
    return fetch.bytesFetchedDemand + fetch.bytesFetchedPrefetch + fetch.bytesFetchedFill;
  };
  try {
    return { way, ...(await starts(host.containerd.socket, pushed.reference, fetched)) };
  } finally {
    await blockd.close();
  }
}

/** What there was before: containerd's own snapshotter, the image pulled and unpacked. */
async function fromOverlayfs(way: string, image: Image): Promise<Sample> {
  await using registry = await DockerRegistry.start();
  const pause = await pushImage(registry, 'test/pause', '1', await pauseImage());
  const pushed = await pushImage(registry, 'bench/web', 'v1', image);
  await using containerd = await Containerd.start({ registries: [{ host: registry.host }], sandboxImage: pause.reference });
  {
    await using cri = await Cri.connect(containerd.socket);
    await cri.pullImage(pause.reference);
    await cri.pullImage(pushed.reference);
  }
  await registry.stop();
  return { way, ...(await starts(containerd.socket, pushed.reference, async () => 0)) };
}

async function runCached(rounds: number): Promise<CaseResult> {
  const source = await webAppImage();
  const converted = await convertedImage(source);
  const index = await indexTwin(source);
  const samples: Sample[] = [];
  for (let round = 0; round < rounds; round += 1) {
    samples.push(await fromCache('cache, full', converted));
    samples.push(await fromCache('cache, index-only', source.image, index));
    samples.push(await fromCache('cache, ordinary (unpacked)', source.image));
    samples.push(await fromOverlayfs("containerd's overlayfs, image present", source.image));
  }
  const ways = [...new Set(samples.map(({ way }) => way))];
  const rows = ways.map((way) => {
    const own = samples.filter((sample) => sample.way === way);
    const later = own.flatMap((sample) => sample.later);
    const ms = (values: readonly number[], share?: number): string =>
      (share === undefined ? median(values) : percentile(values, share)).toFixed(0);
    const prepare = later.map((start) => start.knownMs + start.createMs);
    return [
      way,
      ms(own.map(({ first }) => first.knownMs + first.createMs)),
      ms(own.map(({ first }) => first.startMs)),
      ms(prepare),
      ms(prepare, 0.99),
      ms(later.map((start) => start.startMs)),
      ms(own.map(({ answerMs }) => answerMs)),
      Math.max(...own.map(({ remoteBytes }) => remoteBytes)),
    ];
  });
  const columns = [
    '',
    'first: prepare ms',
    'first: start ms',
    'later: prepare ms',
    'P99',
    'later: start ms',
    'cold web answer ms',
    'remote bytes',
  ];
  const notes = [
    `medians of ${rounds} rounds of 1 first and ${STARTS} later starts of /bin/true through CRI, registry stopped; goal: prepare ≤ 200 ms P99, no remote bytes`,
    'prepare: ImageStatus and CreateContainer, which prepares the root file system; start: StartContainer, mostly the shim and runc',
    'first, and the web answer: page cache dropped; first: no device open either',
  ];
  return { tables: [{ title: 'Web application from a Ready cache', columns, rows }], notes, samples };
}

export const cached: BenchCase = { name: 'cached', title: 'B2 cached: start from a Ready image cache', rounds: 1, run: runCached };
