/** Small measuring tools that the bench cases share: medians, CPU time and memory of processes, page cache, fio. Ours. */
import { execFileSync } from 'node:child_process';
import fs from 'node:fs';
import { run } from '../../support/process.ts';

/** The middle value; of an even number of values, the mean of the two in the middle. 0 of none. */
export function median(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  const half = Math.floor(sorted.length / 2);
  if (sorted.length === 0) return 0;
  return sorted.length % 2 === 1 ? sorted[half]! : (sorted[half - 1]! + sorted[half]!) / 2;
}

/** The value below which a share of the values lies. */
export function percentile(values: readonly number[], share: number): number {
  const sorted = [...values].sort((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))] ?? 0;
}

/** User and system time of a process with all its threads, seconds; 0 when it is gone. Ticks are 1/100 s on Linux. */
export function cpuSeconds(pid: number): number {
  if (!fs.existsSync(`/proc/${pid}/stat`)) return 0;
  const fields = fs.readFileSync(`/proc/${pid}/stat`, 'utf8').split(') ').at(-1)!.split(' ');
  return (Number(fields[11]) + Number(fields[12])) / 100;
}

/** Proportional set size of a process, bytes. */
export function pssBytes(pid: number): number {
  const text = fs.readFileSync(`/proc/${pid}/smaps_rollup`, 'utf8');
  return Number(/^Pss:\s+(\d+) kB/m.exec(text)?.[1] ?? 0) * 1024;
}

/** Empties the page cache and the caches of names and inodes. */
export function dropCaches(): void {
  execFileSync('sync');
  fs.writeFileSync('/proc/sys/vm/drop_caches', '3');
}

export interface FioRead {
  iops: number;
  bytesPerS: number;
  count: number;
  medianUs: number;
  p99Us: number;
  seconds: number;
}

interface FioJson {
  jobs: [{ read: { iops: number; bw_bytes: number; total_ios: number; runtime: number; lat_ns: { percentile?: Record<string, number> } } }];
}

/** From submission on: a server without asynchronous direct reads answers within it. */
const LATENCY = ['--clat_percentiles=0', '--lat_percentiles=1'];

/** Runs one fio job on a file and gives its read figures. */
export async function fio(filePath: string, args: readonly string[]): Promise<FioRead> {
  const common = ['--name=bench', `--filename=${filePath}`, '--readonly', '--output-format=json', ...LATENCY, ...args];
  const { stdout: out } = await run('fio', common, { timeoutMs: 300_000 });
  const { read } = (JSON.parse(out.slice(out.indexOf('{'))) as FioJson).jobs[0];
  const percentiles = read.lat_ns.percentile ?? {};
  return {
    iops: read.iops,
    bytesPerS: read.bw_bytes,
    count: read.total_ios,
    medianUs: (percentiles['50.000000'] ?? 0) / 1000,
    p99Us: (percentiles['99.000000'] ?? 0) / 1000,
    seconds: read.runtime / 1000,
  };
}

/** Milliseconds that `run` takes. */
export async function timed(run: () => Promise<unknown>): Promise<number> {
  const started = performance.now();
  await run();
  return performance.now() - started;
}

export const mb = (bytes: number): string => (bytes / 1e6).toFixed(1);
export const percent = (share: number): string => `${(share * 100).toFixed(1)} %`;
