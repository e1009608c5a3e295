/**
 * Which compression is the default: size, and cold starts over 300 Mbit/s and 5 ms, of two real images converted with each. A smaller block
 * fetches less that is not asked for and finds less to save; a faster decoder costs bytes. One host a round and image, each start from
 * blobs that it has not seen.
 */
import { KIB } from '../../../plugin/base/units.ts';
import type { Compression } from '../../../plugin/convert/build/compress-pool.ts';
import { ALGORITHM } from '../../../plugin/image/zfile/codec.ts';
import { DEBIAN_IMAGE_READY, debianImage } from '../../support/debian-image.ts';
import type { LayeredImage } from '../../support/layered-image.ts';
import { LazyHost, SNAPSHOTTER } from '../../support/lazy-host.ts';
import { type Image, pushImage } from '../../support/oci-image.ts';
import { startRegistryProxy } from '../../support/registry-proxy.ts';
import { type TimedStart, timedStart } from '../../support/timed-start.ts';
import { webAppImage } from '../../support/web-app-image.ts';
import type { BenchCase } from '../harness/bench-case.ts';
import { convertedImage } from '../harness/converted.ts';
import { cpuSeconds, dropCaches, mb, median, percent } from '../harness/measure.ts';
import type { CaseResult } from '../harness/report.ts';
import { LINK, READY } from './start.ts';

const KINDS: readonly [string, Compression][] = [
  ['zstd 64 KiB', { algorithm: ALGORITHM.zstd, blockSizeBytes: 64 * KIB }],
  ['zstd 32 KiB', { algorithm: ALGORITHM.zstd, blockSizeBytes: 32 * KIB }],
  ['zstd 16 KiB', { algorithm: ALGORITHM.zstd, blockSizeBytes: 16 * KIB }],
  ['lz4 64 KiB', { algorithm: ALGORITHM.lz4, blockSizeBytes: 64 * KIB }],
  ['lz4 4 KiB', { algorithm: ALGORITHM.lz4, blockSizeBytes: 4 * KIB }],
];

interface Sample {
  image: string;
  kind: string;
  layersBytes: number;
  tarGzipBytes: number;
  start: TimedStart;
  blockdCpuS: number;
}

async function oneRound(name: string, source: LayeredImage, ready: RegExp, round: number): Promise<Sample[]> {
  const images: [string, Image][] = [];
  for (const [kind, compression] of KINDS) images.push([kind, await convertedImage(source, compression)]);
  await using host = await LazyHost.start();
  const proxy = await startRegistryProxy({ upstream: host.registry.host, ...LINK });
  const samples: Sample[] = [];
  try {
    // Another one goes first each round, so that none always finds the machine as the one before left it.
    for (const [i] of images.entries()) {
      const [kind, image] = images[(i + round) % images.length]!;
      const tag = kind.replaceAll(' ', '-').toLowerCase();
      const pushed = await pushImage(host.registry, `bench/${name.replaceAll(' ', '-')}`, tag, image);
      dropCaches();
      const before = cpuSeconds(host.sidecar.pidOf('blockd')!);
      const reference = pushed.reference.replace(host.registry.host, proxy.host);
      const common = { registry: host.registry, containerd: host.containerd, snapshotter: SNAPSHOTTER, reference, ready };
      const start = await timedStart({ ...common, name: `bench-${i}`, timeoutMs: 300_000 });
      const blockdCpuS = cpuSeconds(host.sidecar.pidOf('blockd')!) - before;
      samples.push({
        image: name,
        kind,
        layersBytes: image.layersSizeBytes,
        tarGzipBytes: source.image.layersSizeBytes,
        start,
        blockdCpuS,
      });
    }
    return samples;
  } finally {
    await proxy.close();
  }
}

async function runCompression(rounds: number): Promise<CaseResult> {
  const sources: [string, LayeredImage, RegExp][] = [
    ['demo image', await debianImage(), DEBIAN_IMAGE_READY],
    ['web application', await webAppImage(), READY],
  ];
  const samples: Sample[] = [];
  for (let round = 0; round < rounds; round += 1) {
    for (const [name, source, ready] of sources) samples.push(...(await oneRound(name, source, ready, round)));
  }
  const rows = sources.flatMap(([name]) =>
    KINDS.map(([kind]) => {
      const mine = samples.filter((sample) => sample.image === name && sample.kind === kind);
      const of = (field: (sample: Sample) => number): number => median(mine.map(field));
      const { layersBytes, tarGzipBytes } = mine[0]!;
      return [
        `${name}, ${kind}`,
        mb(layersBytes),
        percent(layersBytes / tarGzipBytes),
        (of((s) => s.start.pullMs) / 1000).toFixed(2),
        (of((s) => s.start.firstOutputMs) / 1000).toFixed(2),
        (of((s) => s.start.pullMs + s.start.firstOutputMs) / 1000).toFixed(2),
        mb(of((s) => s.start.bytesAtFirstOutput)),
        of((s) => s.blockdCpuS).toFixed(1),
      ];
    }),
  );
  const columns = ['', 'MB', 'of the tar.gz', 'pull s', 'start s', 'both s', 'MB fetched', 'CPU s of blockd'];
  const notes = [
    `medians of ${rounds} rounds; link 300 Mbit/s and 5 ms round trip; page cache dropped before each start`,
    'start: from the end of the pull until the program prints its first line, with `ctr run`',
  ];
  return { tables: [{ title: 'Compression: size and cold start', columns, rows }], notes, samples };
}

export const compression: BenchCase = {
  name: 'compression',
  title: 'Compression: what the default is chosen by',
  rounds: 3,
  run: runCompression,
};
