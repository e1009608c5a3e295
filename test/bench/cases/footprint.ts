/**
 * B10: proportional set sizes of keeper, blockd and sidecar: just started and idle, with 100 devices attached and mounted, and idle again; and
 * the store's ledger against du after bytes were fetched.
 */

import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { run } from '../../support/process.ts';
import { Scratch } from '../../support/scratch.ts';
import type { SidecarProcess } from '../../support/sidecar.ts';
import { waitFor } from '../../support/wait.ts';
import type { BenchCase } from '../harness/bench-case.ts';
import { BlobServer } from '../harness/blob-server.ts';
import { sparseLayer } from '../harness/layer-files.ts';
import { mb, pssBytes } from '../harness/measure.ts';
import { Product } from '../harness/product.ts';
import type { CaseResult } from '../harness/report.ts';

const DEVICES = 100;
const DEVICE_BYTES = 64 * 1024 * 1024;
const PROCESSES: readonly SidecarProcess[] = ['keeper', 'blockd', 'sidecar'];
/** Idle time before a figure is taken; the ten minutes of benchmarks.md need `--rounds`, a minute each. */
const IDLE_MS = 60_000;

interface Sample {
  when: string;
  pss: Record<string, number>;
  total: number;
}

function sample(product: Product, when: string): Sample {
  const pss = Object.fromEntries(PROCESSES.map((name) => [name, pssBytes(product.sidecar.pidOf(name)!)]));
  return { when, pss, total: Object.values(pss).reduce((sum, one) => sum + one, 0) };
}

async function ledgerAgainstDu(product: Product): Promise<{ ledger: number; du: number }> {
  const look = async (): Promise<{ ledger: number; du: number }> => {
    const { store } = await product.stats();
    const { stdout } = await run('du', ['--summarize', '--block-size=1', join(product.sidecar.root, 'store')]);
    return { ledger: store.bytes, du: Number(stdout.split('\t')[0]) };
  };
  let last = await look();
  // A checkpoint may lie between the two looks; a second later nothing moves.
  await waitFor(
    async () => {
      last = await look();
      return last.ledger === last.du;
    },
    { what: 'the ledger to settle', timeoutMs: 10_000, everyMs: 500 },
  ).catch((error: unknown) => process.stdout.write(`  ${String(error)}\n`));
  return last;
}

async function runFootprint(rounds: number): Promise<CaseResult> {
  await using scratch = await Scratch.create('bench-footprint');
  const layers = [];
  for (let i = 0; i < DEVICES; i += 1) layers.push(await sparseLayer(scratch.join(`layer${i}`), DEVICE_BYTES));
  await using server = await BlobServer.start({ layers, roundTripMs: 0, rateBytesPerS: 0 });
  await using product = await Product.start();
  const samples = [sample(product, 'just started')];
  await delay(IDLE_MS * rounds);
  samples.push(sample(product, `idle for ${rounds} min`));
  const devices = [];
  for (const [i, layer] of layers.entries()) devices.push(await product.attach(`device-${i}`, server.layersOf([layer])));
  samples.push(sample(product, `${DEVICES} devices attached`));
  for (const device of devices) await run('dd', [`if=${device.devicePath}`, 'of=/dev/null', 'bs=1M', 'count=4', 'status=none']);
  samples.push(sample(product, `${DEVICES} devices, 4 MiB read from each`));
  const account = await ledgerAgainstDu(product);
  await delay(IDLE_MS * rounds);
  samples.push(sample(product, `the same, idle for ${rounds} min`));
  for (let i = 0; i < DEVICES; i += 1) await product.detach(`device-${i}`);
  const idle = samples[1]!.total;
  const tables = [
    {
      title: 'Proportional set size, MB',
      columns: ['', ...PROCESSES, 'sum', 'more than idle, per device'],
      rows: samples.map(({ when, pss, total }) => [
        when,
        ...PROCESSES.map((name) => mb(pss[name]!)),
        mb(total),
        when.includes('devices') || when.includes('same') ? mb((total - idle) / DEVICES) : '–',
      ]),
    },
    {
      title: 'Store after fetching, bytes',
      columns: ['', 'ledger', 'du', 'difference'],
      rows: [[`${DEVICES} blobs of 64 MiB, partly there`, account.ledger, account.du, account.ledger - account.du]],
    },
  ];
  return { tables, notes: ['workers: 4, the default'], samples: { samples, account } };
}

export const footprint: BenchCase = { name: 'footprint', title: 'B10 footprint: memory and disk', rounds: 1, run: runFootprint };
