/**
 * B9: Prepare, Mounts, Stat and Remove per second through containerd's own client (a Go program), for containerd's overlayfs, for ours on an
 * ordinary layer and for ours on a lazy image; and requests per second of the admin API; and how long a match over many image caches takes.
 */
import { request as httpRequest } from 'node:http';
import { resolve } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { debianImage } from '../../support/debian-image.ts';
import { goBinary } from '../../support/go-build.ts';
import { LazyHost, SNAPSHOTTER } from '../../support/lazy-host.ts';
import { lazyPull } from '../../support/lazy-pull.ts';
import { pushImage } from '../../support/oci-image.ts';
import { run } from '../../support/process.ts';
import type { BenchCase } from '../harness/bench-case.ts';
import { convertedImage } from '../harness/converted.ts';
import { MATCH_TITLE, measureMatches } from '../harness/match-rate.ts';
import { median, percentile } from '../harness/measure.ts';
import type { CaseResult } from '../harness/report.ts';

const COUNT = 200;
const ADMIN_REQUESTS = 2000;
const ADMIN_CALLERS = 8;

interface Series {
  operation: string;
  callers: number;
  wallMs: number;
  callsMs: number[];
}

interface Sample extends Series {
  way: string;
}

async function snapshotRates(host: LazyHost, way: string, snapshotter: string, parent: string | undefined): Promise<Sample[]> {
  const binary = await goBinary('snapshotrate', { sourceDirectory: resolve(import.meta.dirname, '../go/snapshotrate') });
  const args = ['-address', host.containerd.socket, '-snapshotter', snapshotter, '-count', String(COUNT)];
  if (parent !== undefined) args.push('-parent', parent);
  const { stdout } = await run(binary, args, { timeoutMs: 300_000 });
  return (JSON.parse(stdout) as Series[]).map((series) => ({ way, ...series }));
}

/** Milliseconds to the answer; undefined when the API says that this is too often. */
function get(socketPath: string, path: string): Promise<number | undefined> {
  return new Promise((resolve, reject) => {
    const started = performance.now();
    const request = httpRequest({ socketPath, path, timeout: 30_000 }, (response) => {
      const { statusCode } = response;
      if (statusCode !== 200 && statusCode !== 429) reject(new Error(`${path}: status ${statusCode}`));
      response.resume().once('end', () => resolve(statusCode === 200 ? performance.now() - started : undefined));
    });
    request.once('error', reject).end();
  });
}

async function adminRate(socketPath: string, path: string): Promise<Series> {
  const callsMs: number[] = [];
  const started = performance.now();
  const caller = async (): Promise<void> => {
    for (let left = ADMIN_REQUESTS / ADMIN_CALLERS; left > 0; ) {
      const callMs = await get(socketPath, path);
      if (callMs === undefined) await delay(20);
      else {
        callsMs.push(callMs);
        left -= 1;
      }
    }
  };
  await Promise.all(Array.from({ length: ADMIN_CALLERS }, caller));
  return { operation: path, callers: ADMIN_CALLERS, wallMs: performance.now() - started, callsMs };
}

async function runControl(rounds: number): Promise<CaseResult> {
  const image = await convertedImage(await debianImage());
  await using host = await LazyHost.start({ sidecar: { config: { log: { level: 'info' } } } });
  const { reference } = await pushImage(host.registry, 'bench/app', 'overlaybd', image);
  const { snapshotKey } = await lazyPull(host.containerd, reference, { snapshotter: SNAPSHOTTER });
  const samples: Sample[] = [];
  const admin: Series[] = [];
  for (let round = 0; round < rounds; round += 1) {
    samples.push(...(await snapshotRates(host, 'overlayfs', 'overlayfs', undefined)));
    samples.push(...(await snapshotRates(host, 'ours, ordinary layer', SNAPSHOTTER, undefined)));
    samples.push(...(await snapshotRates(host, 'ours, lazy image', SNAPSHOTTER, snapshotKey)));
    for (const path of ['/healthz', '/v1/snapshots', '/v1/devices']) admin.push(await adminRate(host.sidecar.adminSocket, path));
  }
  const rows: (string | number)[][] = [];
  for (const callers of [1, 8])
    for (const operation of ['Prepare', 'Mounts', 'Stat', 'Remove']) {
      const mine = (way: string): Sample[] =>
        samples.filter((sample) => sample.way === way && sample.callers === callers && sample.operation === operation);
      const plain = median(mine('overlayfs').map((sample) => sample.wallMs));
      for (const way of ['overlayfs', 'ours, ordinary layer', 'ours, lazy image']) {
        const wallMs = median(mine(way).map((sample) => sample.wallMs));
        const calls = mine(way).flatMap((sample) => sample.callsMs);
        rows.push([
          `${operation}, ${callers} at once: ${way}`,
          Math.round((COUNT * 1000) / wallMs),
          median(calls).toFixed(2),
          percentile(calls, 0.99).toFixed(2),
          (wallMs / plain).toFixed(2),
        ]);
      }
    }
  const adminRows = [...new Set(admin.map((series) => series.operation))].map((path) => {
    const mine = admin.filter((series) => series.operation === path);
    const calls = mine.flatMap((series) => series.callsMs);
    const rate = (ADMIN_REQUESTS * 1000) / median(mine.map((series) => series.wallMs));
    return [`GET ${path}`, Math.round(rate), median(calls).toFixed(2), percentile(calls, 0.99).toFixed(2)];
  });
  const matches = measureMatches();
  const matchRows = matches.map(({ kind, callsMs }) => [kind, median(callsMs).toFixed(3), percentile(callsMs, 0.99).toFixed(3)]);
  const tables = [
    { title: `Snapshots, ${COUNT} of each`, columns: ['', 'calls/s', 'median ms', 'P99 ms', 'time ÷ overlayfs'], rows },
    {
      title: `Admin API, ${ADMIN_CALLERS} callers, a connection a request`,
      columns: ['', 'requests/s', 'median ms', 'P99 ms'],
      rows: adminRows,
    },
    { title: MATCH_TITLE, columns: ['', 'P50 ms', 'P99 ms'], rows: matchRows },
  ];
  const notes = [
    `medians of ${rounds} rounds; a Go program with containerd's client against containerd 1.6, all calls through containerd; both snapshotters on the same disk`,
    'the admin API answers one caller at most 1,000 reads a second',
    'the first Prepare on a lazy image opens and mounts its device; the next ones share it',
  ];
  return { tables, notes, samples: { samples, admin, matches } };
}

export const control: BenchCase = { name: 'control', title: 'B9 control: snapshots and admin API', rounds: 3, run: runControl };
