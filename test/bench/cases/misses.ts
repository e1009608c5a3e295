/**
 * B7: reads that miss. 4 KiB at distinct 64 KiB units at depth 256 over a link with 20 ms and no rate; one sequential reader over 1 Gbit/s with
 * 20 ms, against curl on the same link; a cold walk of the demo image over the same link, against fetching and unpacking it first.
 */
import { writeFile } from 'node:fs/promises';
import { debianImage } from '../../support/debian-image.ts';
import { run } from '../../support/process.ts';
import { Scratch } from '../../support/scratch.ts';
import type { BenchCase } from '../harness/bench-case.ts';
import { BlobServer } from '../harness/blob-server.ts';
import { convertedImage } from '../harness/converted.ts';
import { sparseLayer } from '../harness/layer-files.ts';
import { dropCaches, fio, mb, median, percent, timed } from '../harness/measure.ts';
import { Product } from '../harness/product.ts';
import type { CaseResult } from '../harness/report.ts';

const ROUND_TRIP_MS = 20;
const UNIT = 64 * 1024;
const RANDOM_READS = 24_000;
const SEQUENTIAL_BYTES = 512 * 1024 * 1024;
const LINK_BYTES_PER_S = 125_000_000;

/** A shuffle that is the same each time, so that rounds agree. */
function shuffled(count: number): number[] {
  const order = Array.from({ length: count }, (_, i) => i);
  let state = 1;
  for (let i = count - 1; i > 0; i -= 1) {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    const j = state % (i + 1);
    [order[i], order[j]] = [order[j]!, order[i]!];
  }
  return order;
}

interface RandomSample {
  missesPerS: number;
  medianMs: number;
  p99Ms: number;
  fetchedBytes: number;
  blockdCpuS: number;
  serverCpuS: number;
}

async function randomMisses(scratch: Scratch): Promise<RandomSample> {
  const layer = await sparseLayer(scratch.join('random'), (RANDOM_READS + 64) * UNIT);
  await using server = await BlobServer.start({ layers: [layer], roundTripMs: ROUND_TRIP_MS, rateBytesPerS: 0 });
  await using product = await Product.start();
  const device = await product.attach('random', server.layersOf([layer]));
  const reads = shuffled(RANDOM_READS).map((unit) => `${device.devicePath} read ${unit * UNIT} 4096`);
  const log = scratch.join('reads');
  await writeFile(log, ['fio version 2 iolog', `${device.devicePath} add`, `${device.devicePath} open`, ...reads, ''].join('\n'));
  const [cpu, serverCpu] = [product.blockdCpuSeconds(), server.cpuSeconds()];
  const args = [`--read_iolog=${log}`, '--replay_no_stall=1', '--direct=1', '--ioengine=libaio', '--iodepth=256'];
  const read = await fio(device.devicePath, args);
  const { fetch } = await product.stats();
  const sample = {
    missesPerS: read.count / read.seconds,
    medianMs: read.medianUs / 1000,
    p99Ms: read.p99Us / 1000,
    fetchedBytes: fetch.bytesFetchedDemand + fetch.bytesFetchedPrefetch,
    blockdCpuS: product.blockdCpuSeconds() - cpu,
    serverCpuS: server.cpuSeconds() - serverCpu,
  };
  await product.detach('random');
  return sample;
}

interface StreamSample {
  curlBytesPerS: number;
  oursBytesPerS: number;
  requests: number;
  blockdCpuS: number;
}

async function sequential(scratch: Scratch): Promise<StreamSample> {
  const layer = await sparseLayer(scratch.join('stream'), 2 * SEQUENTIAL_BYTES);
  await using server = await BlobServer.start({ layers: [layer], roundTripMs: ROUND_TRIP_MS, rateBytesPerS: LINK_BYTES_PER_S });
  const range = `0-${SEQUENTIAL_BYTES - 1}`;
  const curlMs = await timed(() => run('curl', ['--silent', '--fail', '--range', range, '--output', '/dev/null', server.url(layer)]));
  await using product = await Product.start();
  const device = await product.attach('stream', server.layersOf([layer]));
  const cpu = product.blockdCpuSeconds();
  const oursMs = await timed(() =>
    run('dd', [`if=${device.devicePath}`, 'of=/dev/null', 'bs=128k', `count=${SEQUENTIAL_BYTES / 131_072}`, 'status=none']),
  );
  const { fetch } = await product.stats();
  const sample = {
    curlBytesPerS: (SEQUENTIAL_BYTES * 1000) / curlMs,
    oursBytesPerS: (SEQUENTIAL_BYTES * 1000) / oursMs,
    requests: fetch.requests,
    blockdCpuS: product.blockdCpuSeconds() - cpu,
  };
  await product.detach('stream');
  return sample;
}

interface WalkSample {
  namesMs: number;
  namesBytes: number;
  bytesMs: number;
  imageBytes: number;
  plainMs: number;
}

/** The image cold over the link: names, then every byte; and the plain way, fetching and unpacking the tar.gz layers before. */
async function coldWalk(scratch: Scratch): Promise<WalkSample> {
  const source = await debianImage();
  const image = await convertedImage(source);
  const layers = [...image.layers, ...source.image.layers];
  await using server = await BlobServer.start({ layers, roundTripMs: ROUND_TRIP_MS, rateBytesPerS: LINK_BYTES_PER_S });
  await using product = await Product.start();
  const device = await product.attach('walk', server.layersOf(image.layers));
  const target = await scratch.dir('tree');
  await product.mount(device, target);
  const fetched = async (): Promise<number> => {
    const { fetch } = await product.stats();
    return fetch.bytesFetchedDemand + fetch.bytesFetchedPrefetch;
  };
  const namesMs = await timed(() => run('find', [target, '-xdev', '-printf', '%s %p\n']));
  const namesBytes = await fetched();
  const bytesMs = await timed(() => run('bash', ['-c', 'tar --create --file=- --directory="$1" . | cat >/dev/null', 'bash', target]));
  await product.unmount(target);
  await product.detach('walk');
  const plainTree = await scratch.dir('plain');
  const plainMs = await timed(async () => {
    for (const layer of source.image.layers)
      await run('bash', ['-o', 'pipefail', '-c', 'curl --silent --fail "$1" | tar -xzpf - -C "$2"', 'bash', server.url(layer), plainTree]);
    dropCaches();
    await run('bash', ['-c', 'tar --create --file=- --directory="$1" . | cat >/dev/null', 'bash', plainTree]);
  });
  await run('rm', ['-rf', plainTree]);
  return { namesMs, namesBytes, bytesMs: namesMs + bytesMs, imageBytes: image.layersSizeBytes, plainMs };
}

async function runMisses(rounds: number): Promise<CaseResult> {
  await using scratch = await Scratch.create('bench-misses');
  const randoms: RandomSample[] = [];
  const streams: StreamSample[] = [];
  const walks: WalkSample[] = [];
  for (let round = 0; round < rounds; round += 1) {
    randoms.push(await randomMisses(scratch));
    streams.push(await sequential(scratch));
    walks.push(await coldWalk(scratch));
  }
  const of = <S>(samples: S[], field: (sample: S) => number): number => median(samples.map(field));
  const tables = [
    {
      title: `${RANDOM_READS} reads of 4 KiB at distinct 64 KiB units, depth 256, ${ROUND_TRIP_MS} ms, unlimited rate`,
      columns: ['', 'misses/s', 'median ms', 'P99 ms', 'fetched ÷ units', 'CPU µs per miss (blockd)', '(registry)'],
      rows: [
        [
          'ours',
          Math.round(of(randoms, (s) => s.missesPerS)),
          of(randoms, (s) => s.medianMs).toFixed(1),
          of(randoms, (s) => s.p99Ms).toFixed(1),
          (of(randoms, (s) => s.fetchedBytes) / (RANDOM_READS * UNIT)).toFixed(3),
          ((of(randoms, (s) => s.blockdCpuS) / RANDOM_READS) * 1e6).toFixed(0),
          ((of(randoms, (s) => s.serverCpuS) / RANDOM_READS) * 1e6).toFixed(0),
        ],
      ],
    },
    {
      title: `one sequential reader of ${SEQUENTIAL_BYTES / 1e6} MB, ${ROUND_TRIP_MS} ms, 1 Gbit/s`,
      columns: ['', 'MB/s', 'of the link', 'requests'],
      rows: [
        [
          'curl of the same range',
          mb(of(streams, (s) => s.curlBytesPerS)),
          percent(of(streams, (s) => s.curlBytesPerS) / LINK_BYTES_PER_S),
          1,
        ],
        [
          'ours, read from the device',
          mb(of(streams, (s) => s.oursBytesPerS)),
          percent(of(streams, (s) => s.oursBytesPerS) / LINK_BYTES_PER_S),
          Math.round(of(streams, (s) => s.requests)),
        ],
      ],
    },
    {
      title: `cold walk of the demo image, ${ROUND_TRIP_MS} ms, 1 Gbit/s`,
      columns: ['', 'seconds', 'MB fetched', 'of the image'],
      rows: [
        [
          'ours, all names',
          (of(walks, (s) => s.namesMs) / 1000).toFixed(2),
          mb(of(walks, (s) => s.namesBytes)),
          percent(of(walks, (s) => s.namesBytes / s.imageBytes)),
        ],
        ['ours, every byte', (of(walks, (s) => s.bytesMs) / 1000).toFixed(2), mb(of(walks, (s) => s.imageBytes)), '100 %'],
        ['plain: fetch tar.gz layers, unpack, read every byte', (of(walks, (s) => s.plainMs) / 1000).toFixed(2), '–', '100 %'],
      ],
    },
  ];
  const notes = [
    `medians of ${rounds} rounds; the registry is test/bench/go/blobserver: it waits ${ROUND_TRIP_MS} ms before each answer and passes all answers through one rate`,
    'the reader, blockd and the registry share the machine; 3,000 misses/s are 197 MB/s through all three',
  ];
  return { tables, notes, samples: { randoms, streams, walks } };
}

export const misses: BenchCase = { name: 'misses', title: 'B7 misses: reads that the registry answers', rounds: 1, run: runMisses };
