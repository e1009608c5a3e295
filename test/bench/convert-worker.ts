/**
 * One conversion in a process of its own, so that its CPU time is its own: `node convert-worker.ts JSON`. Prints a line of JSON. A stage
 * holds those before it: `inflate`, `hash` (of both forms), `model` (the tar read and applied, metadata laid out, all output thrown away),
 * `all` (blobs in the staging directory), `publish` (from a registry and back into it).
 */
import { createHash } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { basename, join } from 'node:path';
import { Worker } from 'node:worker_threads';
import { sha256 } from '../../plugin/base/digest.ts';
import { CHUNK_BYTES } from '../../plugin/convert/build/blob-writer.ts';
import { convertLayers } from '../../plugin/convert/build/convert-layers.ts';
import { decompress } from '../../plugin/convert/build/decompress.ts';
import { FullContent } from '../../plugin/convert/build/full-content.ts';
import { ImageModel } from '../../plugin/convert/build/image-model.ts';
import { LayerApplier } from '../../plugin/convert/build/layer-applier.ts';
import { ProgressCounter } from '../../plugin/convert/publish/progress.ts';
import { publishAccelerated } from '../../plugin/convert/publish/publish.ts';
import { type ConvertRequest, compressionOf } from '../../plugin/convert/publish/request.ts';
import { writeLayer } from '../../plugin/image/erofs/layer-writer.ts';
import { TarReader } from '../../plugin/image/tar/reader.ts';
import { RegistryClient } from '../../plugin/registry/client.ts';
import { MemoryLedger } from '../support/memory-ledger.ts';

export interface ConvertWork {
  layers: string[];
  stagingDirectory: string;
  stage: 'inflate' | 'hash' | 'model' | 'all' | 'publish';
  request: ConvertRequest;
  /** `publish`: `repository:1` there holds the layers as an image. */
  registry?: { host: string; repository: string };
}

export interface ConvertMeasured {
  wallMs: number;
  cpuMs: number;
  outputBytes: number;
  metadataBytes: number;
  maxRssBytes: number;
  /** Of `all` in full mode: what sealing the blobs (their digest and list of chunks) takes if nothing runs beside it. */
  sealMs: number;
}

const LIMIT_MS = 1_800_000;
const SEAL_WORKER = join(import.meta.dirname, '../../plugin/convert/build/seal-worker.ts');

const work = JSON.parse(process.argv[2]!) as ConvertWork;
const { stagingDirectory, request } = work;
const signal = AbortSignal.timeout(LIMIT_MS);
const open = (path: string): AsyncIterable<Uint8Array> => createReadStream(path, { highWaterMark: 1024 * 1024 });
const measured = { outputBytes: 0, metadataBytes: 0 };
const blobs: string[] = [];

/** Reads every layer; `onTar` sees the decompressed bytes. */
async function read(isHashed: boolean, onTar: (chunk: Buffer) => void, onEnd: (path: string) => void = () => {}): Promise<void> {
  for (const path of work.layers) {
    const stored = createHash('sha256');
    const tar = createHash('sha256');
    const onCompressed = (chunk: Uint8Array): void => void (isHashed && stored.update(chunk));
    for await (const chunk of decompress(open(path), path, { maxBytes: 2 ** 40 }, onCompressed, signal)) {
      if (isHashed) tar.update(chunk);
      onTar(chunk);
    }
    onEnd(path);
  }
}

async function model(): Promise<void> {
  using image = new ImageModel({ stagingDirectory });
  const begin = () => {
    image.beginLayer('layer');
    return new TarReader(new LayerApplier(image.tree, image.space, new FullContent({ append: () => {} }, image.files)));
  };
  let tar = begin();
  let left = work.layers.length;
  const onTar = (chunk: Buffer): void => tar.push(chunk);
  await read(true, onTar, (path) => {
    tar.end();
    const { chainId } = image.chain(sha256(path));
    const regionStart = image.space.endBytes;
    for (const { offsetBytes, bytes } of writeLayer(image.sources(chainId))) {
      image.metadata.write(offsetBytes, bytes, regionStart);
      measured.metadataBytes += bytes.length;
    }
    image.endLayer();
    left -= 1;
    if (left > 0) tar = begin();
  });
}

async function all(): Promise<void> {
  const sources = work.layers.map((path) => ({ name: basename(path), open: () => open(path) }));
  const options = { stagingDirectory, signal, mode: request.mode, compression: compressionOf(request) };
  for await (const layer of convertLayers(sources, options)) {
    measured.outputBytes += layer.sizeBytes;
    measured.metadataBytes += layer.statistics.metadataBytes;
    if (layer.kind === 'full') blobs.push(layer.path);
  }
}

async function publish(): Promise<void> {
  const { host, repository } = work.registry!;
  await using client = new RegistryClient();
  const context = {
    ...{ client, request, stagingDirectory, signal, threads: 2, maxLayerBytes: 2 ** 40 },
    repository: { host, repository },
    ledger: new MemoryLedger().of(repository),
    log: () => {},
    progress: new ProgressCounter(() => {}),
  };
  measured.outputBytes = (await publishAccelerated(context, { tag: '1' })).resultBytes;
}

function seal(path: string): Promise<void> {
  return new Promise((resolve, reject) => {
    const worker = new Worker(SEAL_WORKER, { workerData: { path, chunkBytes: CHUNK_BYTES } });
    worker.once('error', reject);
    worker.once('exit', () => resolve());
  });
}

const STAGES: Readonly<Record<ConvertWork['stage'], () => Promise<void>>> = {
  inflate: () => read(false, () => {}),
  hash: () => read(true, () => {}),
  model,
  all,
  publish,
};

const before = process.cpuUsage();
const begin = performance.now();
await STAGES[work.stage]();
const { user, system } = process.cpuUsage(before);
const wallMs = performance.now() - begin;
const maxRssBytes = process.resourceUsage().maxRSS * 1024;
const sealBegin = performance.now();
for (const path of blobs) await seal(path);
const sealMs = performance.now() - sealBegin;
const result: ConvertMeasured = { wallMs, cpuMs: (user + system) / 1000, ...measured, maxRssBytes, sealMs };
process.stdout.write(`${JSON.stringify(result)}\n`);
