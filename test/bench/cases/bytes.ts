/**
 * B8: bytes fetched for a start, against the distinct 64 KiB units that the kernel asked for without its read-ahead ("touched"), which a
 * second host with read-ahead 0 tells. A snapshot keeps the device open, so that its counters can be read after the start.
 */
import { join } from 'node:path';
import { BlockdClient } from '../../../plugin/blockd/client.ts';
import { DEBIAN_IMAGE_READY, debianImage } from '../../support/debian-image.ts';
import type { LayeredImage } from '../../support/layered-image.ts';
import { LazyHost, SNAPSHOTTER } from '../../support/lazy-host.ts';
import { lazyPull } from '../../support/lazy-pull.ts';
import { type Image, pushImage } from '../../support/oci-image.ts';
import { timedStart } from '../../support/timed-start.ts';
import { waitFor } from '../../support/wait.ts';
import { webAppImage } from '../../support/web-app-image.ts';
import type { BenchCase } from '../harness/bench-case.ts';
import { convertedImage } from '../harness/converted.ts';
import { mb, median, percent } from '../harness/measure.ts';
import type { CaseResult } from '../harness/report.ts';

interface Sample {
  image: string;
  readAheadKib: number;
  imageBytes: number;
  demandBytes: number;
  prefetchBytes: number;
  /** Distinct units that any read came to. */
  accessedBytes: number;
  firstOutputMs: number;
  secondContainerBytes: number;
}

/** Of `blockd.read_ahead_kib`. */
const DEFAULT_READ_AHEAD_KIB = 64;

async function start(name: string, image: Image, ready: RegExp, readAheadKib: number): Promise<Sample> {
  await using host = await LazyHost.start({
    sidecar: { config: { log: { level: 'info' }, blockd: { read_ahead_kib: readAheadKib } } },
    containerd: {},
  });
  const { reference } = await pushImage(host.registry, 'bench/app', 'overlaybd', image);
  const { snapshotKey } = await lazyPull(host.containerd, reference, { snapshotter: SNAPSHOTTER });
  const snapshots = ['snapshots', '--snapshotter', SNAPSHOTTER];
  // The label tells containerd's collector that the snapshot is wanted; it may come between the two.
  const keep = async (): Promise<boolean> => {
    await host.containerd.ctr([...snapshots, 'view', 'keep', snapshotKey], { okCodes: [0, 1] });
    return (await host.containerd.ctr([...snapshots, 'label', 'keep', 'containerd.io/gc.root=bench'], { okCodes: [0, 1] })).code === 0;
  };
  await waitFor(keep, { what: 'a snapshot that stays' });
  await using stack = new AsyncDisposableStack();
  stack.defer(async () => void (await host.containerd.ctr([...snapshots, 'remove', 'keep'])));
  const blockd = new BlockdClient(join(host.sidecar.run, 'blockd.sock'));
  stack.defer(() => blockd.close());
  const fetched = async (): Promise<{ demand: number; prefetch: number }> => {
    const { fetch } = await blockd.stats(AbortSignal.timeout(10_000));
    return { demand: fetch.bytesFetchedDemand, prefetch: fetch.bytesFetchedPrefetch };
  };
  const common = { registry: host.registry, containerd: host.containerd, snapshotter: SNAPSHOTTER, reference, ready };
  const { firstOutputMs } = await timedStart({ ...common, name: 'bench-1' });
  await host.registry.blobBytesSentWhenQuiet();
  const first = await fetched();
  const devices = await blockd.devices(AbortSignal.timeout(10_000));
  await timedStart({ ...common, name: 'bench-2' });
  await host.registry.blobBytesSentWhenQuiet();
  const second = await fetched();
  return {
    image: name,
    readAheadKib,
    imageBytes: image.layersSizeBytes,
    demandBytes: first.demand,
    prefetchBytes: first.prefetch,
    accessedBytes: devices.reduce((sum, device) => sum + device.accessedBytes, 0),
    firstOutputMs,
    secondContainerBytes: second.demand + second.prefetch - first.demand - first.prefetch,
  };
}

async function runBytes(rounds: number): Promise<CaseResult> {
  const images: [string, LayeredImage, RegExp][] = [
    ['demo image', await debianImage(), DEBIAN_IMAGE_READY],
    ['web application', await webAppImage(), /listening on/],
  ];
  const samples: Sample[] = [];
  const rows: string[][] = [];
  for (const [name, source, ready] of images) {
    const image = await convertedImage(source);
    for (let round = 0; round < rounds; round += 1)
      for (const readAheadKib of [DEFAULT_READ_AHEAD_KIB, 0]) samples.push(await start(name, image, ready, readAheadKib));
    const of = (readAheadKib: number, field: (sample: Sample) => number): number =>
      median(samples.filter((sample) => sample.image === name && sample.readAheadKib === readAheadKib).map(field));
    const touched = of(0, (s) => s.accessedBytes);
    for (const readAheadKib of [DEFAULT_READ_AHEAD_KIB, 0]) {
      const total = of(readAheadKib, (s) => s.demandBytes + s.prefetchBytes);
      rows.push([
        `${name}, kernel read-ahead ${readAheadKib} KiB${readAheadKib === DEFAULT_READ_AHEAD_KIB ? ' (default)' : ''}`,
        mb(touched),
        mb(of(readAheadKib, (s) => s.accessedBytes)),
        mb(of(readAheadKib, (s) => s.demandBytes)),
        mb(of(readAheadKib, (s) => s.prefetchBytes)),
        (total / touched).toFixed(2),
        percent(total / image.layersSizeBytes),
        mb(of(readAheadKib, (s) => s.secondContainerBytes)),
        (of(readAheadKib, (s) => s.firstOutputMs) / 1000).toFixed(2),
      ]);
    }
  }
  const columns = ['', 'touched MB', 'asked for MB', 'fetched by reads MB', 'prefetched MB', 'fetched ÷ touched', 'of the image'];
  const table = {
    title: 'Bytes of one start, until the registry is quiet',
    columns: [...columns, 'second container MB', 'first output s'],
    rows,
  };
  const notes = [
    `medians of ${rounds} rounds; touched: distinct 64 KiB units that the kernel asks for with its read-ahead off; asked for: with it`,
    'the plain way fetches 100 % of the image; layers are compressed, so a unit of 64 KiB holds about 150 KiB of files',
  ];
  return { tables: [table], notes, samples };
}

export const bytes: BenchCase = { name: 'bytes', title: 'B8 bytes: what a start fetches', rounds: 1, run: runBytes };
