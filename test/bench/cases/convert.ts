/**
 * B3: conversion of 1 GB of files from tar.gz, as one layer and as ten, in full mode (lz4, zstd) and index-only; wall and CPU seconds, size
 * against the tar.gz. Beside it what the system's own tools need: `zcat | tar -x`, then mkfs.erofs.
 */
import { join } from 'node:path';
import { ALGORITHM } from '../../../plugin/image/zfile/codec.ts';
import { run } from '../../support/process.ts';
import { Scratch } from '../../support/scratch.ts';
import type { ConvertMeasured, ConvertWork } from '../convert-worker.ts';
import type { BenchCase } from '../harness/bench-case.ts';
import { type ConvertCorpus, convertCorpus } from '../harness/convert-corpus.ts';
import { mb, median, percent } from '../harness/measure.ts';
import type { CaseResult } from '../harness/report.ts';

const LIMIT_MS = 1_800_000;
const WORKER = join(import.meta.dirname, '../convert-worker.ts');

const OURS: readonly [string, Pick<ConvertWork, 'stage' | 'mode' | 'compression'>][] = [
  ['inflate and hash alone', { stage: 'inflate', mode: 'full' }],
  ['full, zstd 64 KiB (default)', { stage: 'all', mode: 'full', compression: { algorithm: ALGORITHM.zstd, blockSizeBytes: 65_536 } }],
  ['full, lz4 4 KiB', { stage: 'all', mode: 'full', compression: { algorithm: ALGORITHM.lz4, blockSizeBytes: 4096 } }],
  ['index-only', { stage: 'all', mode: 'index-only' }],
];

const YARDSTICKS: readonly [string, string][] = [
  ['mkfs.erofs, not compressed', 'mkfs.erofs --quiet "$1/out" "$1/tree" >&2'],
  ['mkfs.erofs -zlz4hc', 'mkfs.erofs --quiet -zlz4hc "$1/out" "$1/tree" >&2'],
];

interface Sample extends ConvertMeasured {
  what: string;
  layers: number;
  tarGzipBytes: number;
}

async function ours(what: string, kind: (typeof OURS)[number][1], corpus: ConvertCorpus): Promise<Sample> {
  await using scratch = await Scratch.create('bench-convert');
  const work: ConvertWork = { ...kind, layers: corpus.layers, stagingDirectory: await scratch.dir('staging') };
  const { stdout } = await run(process.execPath, [WORKER, JSON.stringify(work)], { timeoutMs: LIMIT_MS });
  return { what, layers: corpus.layers.length, tarGzipBytes: corpus.tarGzipBytes, ...(JSON.parse(stdout) as ConvertMeasured) };
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
  const common = { layers: corpus.layers.length, tarGzipBytes: corpus.tarGzipBytes, metadataBytes: 0, maxRssBytes: 0 };
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

async function runConvert(rounds: number): Promise<CaseResult> {
  const corpora = await convertCorpus();
  const samples: Sample[] = [];
  for (let round = 0; round < rounds; round += 1)
    for (const corpus of [corpora.one, corpora.ten]) {
      for (const [what, kind] of OURS) samples.push(await ours(what, kind, corpus));
      if (corpus === corpora.one) samples.push(...(await yardsticks(corpus)));
    }
  const kinds = new Map(
    samples.map((sample) => [`${sample.what}, ${sample.layers === 1 ? 'one layer' : `${sample.layers} layers`}`, sample]),
  );
  const rows = [...kinds].map(([title, { what, layers, tarGzipBytes, outputBytes, metadataBytes }]) => {
    const of = (field: 'wallMs' | 'cpuMs' | 'maxRssBytes'): number =>
      median(samples.filter((sample) => sample.what === what && sample.layers === layers).map((sample) => sample[field]));
    const [wall, cpu] = [of('wallMs') / 1000, of('cpuMs') / 1000];
    return [
      title,
      wall.toFixed(1),
      cpu.toFixed(1),
      outputBytes === 0 ? '–' : mb(outputBytes),
      outputBytes === 0 ? '–' : percent(outputBytes / tarGzipBytes),
      metadataBytes === 0 ? '–' : mb(metadataBytes),
      of('maxRssBytes') === 0 ? '–' : mb(of('maxRssBytes')),
    ];
  });
  const columns = ['', 'wall s', 'CPU s', 'output MB', 'of the tar.gz', 'metadata MB', 'largest memory MB'];
  const { one } = corpora;
  const notes = [
    `${mb(one.tarBytes)} MB of tar, ${mb(one.tarGzipBytes)} MB as tar.gz; medians of ${rounds} rounds; CPU seconds count all threads`,
    'goals: full ≤ 8 s and ≤ 110 %, index-only ≤ 2 s and ≤ 2 %; "inflate and hash alone" is the share no converter of a tar.gz can avoid',
    'the yardstick makes one file system of one layer and no digests, no layers, no blocks that can be fetched apart',
  ];
  return { tables: [{ title: 'Conversion of 1 GB from tar.gz', columns, rows }], notes, samples };
}

export const convert: BenchCase = { name: 'convert', title: 'B3 convert: ordinary images to lazy ones', rounds: 1, run: runConvert };
