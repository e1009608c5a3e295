/**
 * B1 and B1i: the web application of about 1.3 GB (Node, some 3,500 modules) from a registry behind 300 Mbit/s and 5 ms: pull, then until it listens.
 * Ours in full mode, ours from the image's own tar.gz layers through its index-only twin, and containerd's overlayfs with those layers, each
 * on a host of its own; then all again with the image present.
 */

import { LazyHost, SNAPSHOTTER } from '../../support/lazy-host.ts';
import type { Image } from '../../support/oci-image.ts';
import { pushImage } from '../../support/oci-image.ts';
import { startRegistryProxy } from '../../support/registry-proxy.ts';
import { type TimedStart, timedStart } from '../../support/timed-start.ts';
import { webAppImage } from '../../support/web-app-image.ts';
import type { BenchCase } from '../harness/bench-case.ts';
import { convertedImage, indexTwin } from '../harness/converted.ts';
import { cpuSeconds, dropCaches, mb, median, percent } from '../harness/measure.ts';
import type { CaseResult } from '../harness/report.ts';

export const LINK = { rateBytesPerS: 37_500_000, roundTripMs: 5 };
export const READY = /listening on/;

interface Sample {
  way: string;
  cold: TimedStart;
  warm: TimedStart;
  /** Of blockd and the sidecar, or of containerd, over the cold start. */
  daemonCpuS: number;
}

interface Way {
  way: string;
  snapshotter: string;
  image: Image;
  /** Served in place of the image that is named. */
  twin?: Image;
}

async function oneWay({ way, snapshotter, image, twin }: Way): Promise<Sample> {
  await using host = await LazyHost.start({ sidecar: { config: { log: { level: 'info' } } } });
  const pushed = await pushImage(host.registry, 'bench/web', 'v1', image);
  if (twin !== undefined) await pushImage(host.registry, 'bench/web', 'v1_accelerated', twin);
  const proxy = await startRegistryProxy({ upstream: host.registry.host, ...LINK });
  try {
    dropCaches();
    const reference = pushed.reference.replace(host.registry.host, proxy.host);
    const pids = [host.sidecar.pidOf('blockd')!, host.sidecar.pidOf('sidecar')!, host.containerd.pid];
    const cpu = (): number => pids.reduce((sum, pid) => sum + cpuSeconds(pid), 0);
    const common = { registry: host.registry, containerd: host.containerd, snapshotter, reference, ready: READY, timeoutMs: 300_000 };
    const before = cpu();
    const cold = await timedStart({ ...common, name: 'bench-cold' });
    const daemonCpuS = cpu() - before;
    const warm = await timedStart({ ...common, name: 'bench-warm' });
    return { way, cold, warm, daemonCpuS };
  } finally {
    await proxy.close();
  }
}

async function runStart(rounds: number): Promise<CaseResult> {
  const source = await webAppImage();
  const converted = await convertedImage(source);
  const full: Way = { way: 'ours, full mode', snapshotter: SNAPSHOTTER, image: converted };
  const index = { way: 'ours, index-only', snapshotter: SNAPSHOTTER, image: source.image, twin: await indexTwin(source) };
  const plain: Way = { way: "containerd's overlayfs, tar.gz layers", snapshotter: 'overlayfs', image: source.image };
  const samples: Sample[] = [];
  for (let round = 0; round < rounds; round += 1) for (const way of [full, index, plain]) samples.push(await oneWay(way));
  const ofWay = (way: string, field: (sample: Sample) => number): number =>
    median(samples.filter((sample) => sample.way === way).map(field));
  const both = ({ way }: Way): number => ofWay(way, ({ cold }) => cold.pullMs + cold.firstOutputMs);
  const gainOf = (way: Way): number => both(plain) - both(way);
  const rows = [full, index, plain].map(({ way, image, twin }) => {
    const of = (field: (sample: Sample) => number): number => ofWay(way, field);
    const seconds = (field: (sample: Sample) => number): string => (of(field) / 1000).toFixed(2);
    return [
      way,
      seconds((s) => s.cold.pullMs),
      seconds((s) => s.cold.firstOutputMs),
      seconds((s) => s.cold.pullMs + s.cold.firstOutputMs),
      mb(of((s) => s.cold.bytesAtFirstOutput)),
      mb(image.layersSizeBytes + (twin?.layersSizeBytes ?? 0)),
      of((s) => s.daemonCpuS).toFixed(1),
      seconds((s) => s.warm.firstOutputMs),
    ];
  });
  const columns = ['', 'pull s', 'start s', 'both s', 'MB fetched', 'MB of image', 'CPU s of the daemons', 'second container s'];
  const notes = [
    `medians of ${rounds} rounds; link 300 Mbit/s and 5 ms round trip, a TCP proxy in the bench's own process; page cache dropped before`,
    `gain over overlayfs: full mode ${(gainOf(full) / 1000).toFixed(1)} s, index-only ${(gainOf(index) / 1000).toFixed(1)} s, which is ${percent(gainOf(index) / gainOf(full))} of it (goal 85 %)`,
    `the index is ${mb(index.twin.layersSizeBytes)} MB, ${percent(index.twin.layersSizeBytes / source.image.layersSizeBytes)} of the image (goal 2 %)`,
    'start: from the end of the pull until the program says that it listens, with `ctr run`; CPU: blockd, sidecar and containerd',
  ];
  return { tables: [{ title: 'Web application, cold node', columns, rows }], notes, samples };
}

export const start: BenchCase = { name: 'start', title: 'B1 start: pull and first answer', rounds: 1, run: runStart };
