/**
 * One conversion in a process of its own, so that its CPU time is its own: `node convert-worker.ts JSON`. Prints a line of JSON. With `stage`
 * `inflate`, only what every conversion begins with: decompress the layers and hash both forms.
 */
import { createHash } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { basename } from 'node:path';
import type { Compression } from '../../plugin/convert/build/compress-pool.ts';
import { convertLayers } from '../../plugin/convert/build/convert-layers.ts';
import { decompress } from '../../plugin/convert/build/decompress.ts';

export interface ConvertWork {
  layers: string[];
  stagingDirectory: string;
  stage: 'inflate' | 'all';
  mode: 'full' | 'index-only';
  compression?: Compression;
}

export interface ConvertMeasured {
  wallMs: number;
  cpuMs: number;
  outputBytes: number;
  metadataBytes: number;
  maxRssBytes: number;
}

const LIMIT_MS = 1_800_000;

const work = JSON.parse(process.argv[2]!) as ConvertWork;
const signal = AbortSignal.timeout(LIMIT_MS);
const open = (path: string): AsyncIterable<Uint8Array> => createReadStream(path, { highWaterMark: 1024 * 1024 });
const measured = { outputBytes: 0, metadataBytes: 0 };
const before = process.cpuUsage();
const begin = performance.now();
if (work.stage === 'inflate') {
  for (const path of work.layers) {
    const stored = createHash('sha256');
    const tar = createHash('sha256');
    const onCompressed = (chunk: Uint8Array): void => void stored.update(chunk);
    for await (const chunk of decompress(open(path), path, { maxBytes: 2 ** 40 }, onCompressed, signal)) tar.update(chunk);
  }
} else {
  const { stagingDirectory, mode, compression } = work;
  const sources = work.layers.map((path) => ({ name: basename(path), open: () => open(path) }));
  const options = { stagingDirectory, signal, mode, ...(compression === undefined ? {} : { compression }) };
  for await (const layer of convertLayers(sources, options)) {
    measured.outputBytes += layer.sizeBytes;
    measured.metadataBytes += layer.statistics.metadataBytes;
  }
}
const { user, system } = process.cpuUsage(before);
const result: ConvertMeasured = {
  wallMs: performance.now() - begin,
  cpuMs: (user + system) / 1000,
  ...measured,
  maxRssBytes: process.resourceUsage().maxRSS * 1024,
};
process.stdout.write(`${JSON.stringify(result)}\n`);
