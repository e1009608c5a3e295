/**
 * B3: conversion of 1 GB of files from tar.gz, as one layer and as ten, in full mode (lz4, zstd) and index-only; wall and CPU seconds, size
 * against the tar.gz. Beside it what the system's own tools need: `zcat | tar -x`, then mkfs.erofs.
 */
import { join } from 'node:path';
import { parseDigest } from '../../../plugin/base/digest.ts';
import { type ConvertRequest, convertRequestSchema } from '../../../plugin/convert/publish/request.ts';
import { DockerRegistry } from '../../support/docker-registry.ts';
import { buildImage, type Layer, MEDIA_TYPE, pushImage } from '../../support/oci-image.ts';
import { run } from '../../support/process.ts';
import { Scratch } from '../../support/scratch.ts';
import { digestOfFile } from '../../support/tar.ts';
import { TEST_CACHE } from '../../support/test-cache.ts';
import type { ConvertMeasured, ConvertWork } from '../convert-worker.ts';
import type { BenchCase } from '../harness/bench-case.ts';
import { type ConvertCorpus, convertCorpus, manyFiles } from '../harness/convert-corpus.ts';
import { mb, median, percent } from '../harness/measure.ts';
import type { CaseResult } from '../harness/report.ts';

const LIMIT_MS = 1_800_000;
const WORKER = join(import.meta.dirname, '../convert-worker.ts');

const requestOf = (request: object): ConvertRequest => convertRequestSchema.parse(request);

const OURS: readonly [string, ConvertRequest][] = [
  ['full, default', requestOf({})],
  ['full, zstd 64 KiB', requestOf({ compression: 'zstd', blockKib: 64 })],
  ['full, lz4 4 KiB', requestOf({ compression: 'lz4', blockKib: 4 })],
  ['index-only', requestOf({ mode: 'index-only' })],
];

/** Each holds the ones before it. */
const STAGES: readonly [string, ConvertWork['stage']][] = [
  ['inflate', 'inflate'],
  ['and hash both forms', 'hash'],
  ['and read the tar, build the tree, lay out its metadata', 'model'],
  ['and compress, write, seal: all', 'all'],
  ['all, from docker-registry and back into it', 'publish'],
];

const YARDSTICKS: readonly [string, string][] = [
  ['mkfs.erofs, not compressed', 'mkfs.erofs --quiet "$1/out" "$1/tree" >&2'],
  ['mkfs.erofs -zlz4hc', 'mkfs.erofs --quiet -zlz4hc "$1/out" "$1/tree" >&2'],
];

interface Sample extends ConvertMeasured {
  isOfMany?: true;
  what: string;
  layers: number;
  tarGzipBytes: number;
}

async function ours(what: string, corpus: ConvertCorpus, work: Omit<ConvertWork, 'layers' | 'stagingDirectory'>): Promise<Sample> {
  await using scratch = await Scratch.create('bench-convert');
  const all: ConvertWork = { ...work, layers: corpus.layers, stagingDirectory: await scratch.dir('staging') };
  // Compiled code is kept between conversions, as the unit has it.
  const env = { ...process.env, NODE_COMPILE_CACHE: join(TEST_CACHE, 'compile-cache') };
  const { stdout } = await run(process.execPath, [WORKER, JSON.stringify(all)], { timeoutMs: LIMIT_MS, env });
  return { what, layers: corpus.layers.length, tarGzipBytes: corpus.tarGzipBytes, ...(JSON.parse(stdout) as ConvertMeasured) };
}

/** The corpus as an image in a registry. */
async function pushCorpus(registry: DockerRegistry, repository: string, corpus: ConvertCorpus): Promise<void> {
  const layers: Layer[] = [];
  for (const path of corpus.layers) {
    const { stdout } = await run('bash', ['-c', 'set -o pipefail; zcat "$1" | sha256sum', 'bash', path], { timeoutMs: LIMIT_MS });
    const diffId = parseDigest(`sha256:${stdout.slice(0, 64)}`, path);
    layers.push({ mediaType: MEDIA_TYPE.tarGzip, ...(await digestOfFile(path)), diffId, blob: path });
  }
  await pushImage(registry, repository, '1', buildImage(layers));
}

async function stages(corpus: ConvertCorpus): Promise<Sample[]> {
  await using registry = await DockerRegistry.start();
  const repository = `bench/layers-${corpus.layers.length}`;
  await pushCorpus(registry, repository, corpus);
  const samples: Sample[] = [];
  for (const [what, stage] of STAGES) {
    samples.push(await ours(what, corpus, { stage, request: requestOf({}), registry: { host: registry.host, repository } }));
  }
  return samples;
}

/** Runs a shell command on `scratch`; bash tells the times of it and its children. */
async function timed(script: string, args: readonly string[]): Promise<{ wallMs: number; cpuMs: number }> {
  const timedScript = `TIMEFORMAT='%R %U %S'; set -eo pipefail; time { ${script}; }`;
  const { stderr } = await run('bash', ['-c', timedScript, 'bash', ...args], { timeoutMs: LIMIT_MS });
  const [wall, user, system] = stderr.trim().split('\n').at(-1)!.split(' ').map(Number);
  return { wallMs: wall! * 1000, cpuMs: (user! + system!) * 1000 };
}

async function yardsticks(corpus: ConvertCorpus): Promise<Sample[]> {
  await using scratch = await Scratch.create('bench-mkfs');
  await scratch.dir('tree');
  const common = { layers: corpus.layers.length, tarGzipBytes: corpus.tarGzipBytes, metadataBytes: 0, maxRssBytes: 0, sealMs: 0 };
  const unpack = await timed('target=$1; shift; for layer; do zcat "$layer" | tar -xp -C "$target/tree"; done', [
    scratch.path,
    ...corpus.layers,
  ]);
  const samples: Sample[] = [{ what: 'zcat | tar -x alone', ...common, ...unpack, outputBytes: 0 }];
  for (const [what, script] of YARDSTICKS) {
    const { wallMs, cpuMs } = await timed(script, [scratch.path]);
    const { stdout } = await run('stat', ['--format=%s', scratch.join('out')]);
    await run('rm', [scratch.join('out')]);
    const sums = { wallMs: unpack.wallMs + wallMs, cpuMs: unpack.cpuMs + cpuMs };
    samples.push({ what: `zcat | tar -x, then ${what}`, ...common, ...sums, outputBytes: Number(stdout) });
  }
  return samples;
}

const nameOf = ({ what, layers, isOfMany }: Sample): string =>
  isOfMany === true ? what : `${what}, ${layers === 1 ? 'one layer' : `${layers} layers`}`;

const COLUMNS = ['', 'wall s', 'CPU s', 'output MB', 'of the tar.gz', 'metadata MB', 'largest memory MB'];

/** The rows of one mode, without stages and yardsticks. */
async function runMode(rounds: number, mode: string): Promise<CaseResult> {
  const corpora = await convertCorpus();
  const samples: Sample[] = [];
  for (let round = 0; round < rounds; round += 1)
    for (const corpus of [corpora.one, corpora.ten])
      for (const [what, request] of OURS.filter(([name]) => name.startsWith(mode)))
        samples.push(await ours(what, corpus, { stage: 'all', request }));
  const tables = [{ title: 'Conversion of 1 GB from tar.gz', columns: COLUMNS, rows: rowsOf(samples) }];
  return { tables, notes: [`medians of ${rounds} rounds`], samples };
}

const medianOf = (all: readonly Sample[], name: string, field: 'wallMs' | 'cpuMs' | 'maxRssBytes' | 'sealMs'): number =>
  median(all.filter((sample) => nameOf(sample) === name).map((sample) => sample[field]));

function rowsOf(samples: readonly Sample[]): (string | number)[][] {
  const last = new Map(samples.map((sample) => [nameOf(sample), sample]));
  return [...last].map(([name, { tarGzipBytes, outputBytes, metadataBytes }]) => [
    name,
    (medianOf(samples, name, 'wallMs') / 1000).toFixed(2),
    (medianOf(samples, name, 'cpuMs') / 1000).toFixed(1),
    outputBytes === 0 ? '–' : mb(outputBytes),
    outputBytes === 0 ? '–' : percent(outputBytes / tarGzipBytes),
    metadataBytes === 0 ? '–' : mb(metadataBytes),
    medianOf(samples, name, 'maxRssBytes') === 0 ? '–' : mb(medianOf(samples, name, 'maxRssBytes')),
  ]);
}

async function runConvert(rounds: number, mode?: string): Promise<CaseResult> {
  if (mode !== undefined) return runMode(rounds, mode);
  const corpora = await convertCorpus();
  const samples: Sample[] = [];
  const staged: Sample[] = [];
  for (let round = 0; round < rounds; round += 1)
    for (const corpus of [corpora.one, corpora.ten]) {
      for (const [what, request] of OURS) samples.push(await ours(what, corpus, { stage: 'all', request }));
      if (corpus === corpora.one) samples.push(...(await yardsticks(corpus)));
      staged.push(...(await stages(corpus)));
    }
  const many = await manyFiles();
  samples.push({ ...(await ours('full, a million files', many, { stage: 'all', request: requestOf({}) })), isOfMany: true });
  const stageRows = [...new Set(staged.map(nameOf))].map((name) => [
    name,
    (medianOf(staged, name, 'wallMs') / 1000).toFixed(2),
    (medianOf(staged, name, 'cpuMs') / 1000).toFixed(2),
    medianOf(staged, name, 'sealMs') < 1 ? '–' : (medianOf(staged, name, 'sealMs') / 1000).toFixed(2),
  ]);
  const { one } = corpora;
  const notes = [
    `${mb(one.tarBytes)} MB of tar, ${mb(one.tarGzipBytes)} MB as tar.gz; medians of ${rounds} rounds; CPU seconds count all threads`,
    'goals: full ≤ 8 s and ≤ 110 %, index-only ≤ 2 s and ≤ 2 %; inflating and hashing is the share that no converter of a tar.gz can avoid',
    'stages: each row holds the ones before it; compression and inflating run in threads beside the rest, so walls do not add up, CPU seconds do',
    `a million files: ${mb(many.tarBytes)} MB of tar, one run; their names, inodes and content decide the memory`,
    'the yardstick makes one file system of one layer and no digests, no layers, no blocks that can be fetched apart',
  ];
  const tables = [
    { title: 'Conversion of 1 GB from tar.gz', columns: COLUMNS, rows: rowsOf(samples) },
    { title: 'Stages in full mode at the default', columns: ['', 'wall s', 'CPU s', 'of it sealing, alone, wall s'], rows: stageRows },
  ];
  return { tables, notes, samples: { samples, staged } };
}

export const convert: BenchCase = {
  name: 'convert',
  title: 'B3 convert: ordinary images to lazy ones',
  rounds: 1,
  modes: ['full', 'index'],
  run: runConvert,
};
