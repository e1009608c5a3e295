/**
 * Bench `connections`: one FUSE connection per device (workers poll 100 of them) against one shared connection (workers block in
 * read). design.md takes the shared one only if separate ones cost more than 10 %. Same server code, same load: fio with 4 KiB random direct
 * reads at depth 1 and 32, and 128 KiB sequential ones; CPU seconds of the server per 100,000 requests.
 */
import { execFileSync, spawn } from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { Worker } from 'node:worker_threads';
import { addToEpoll, createEpoll } from '../../plugin/kernel/epoll.ts';
import { detachMounts, MS_RDONLY, mount } from '../../plugin/kernel/mount.ts';
import type { BenchWorkerData } from './connections-worker.ts';

const SIZE = 4 * 1024 ** 3;
const WORKERS = 4;

function connect(directory: string, count: number, blocking: boolean): number[] {
  return Array.from({ length: count }, (_, i) => {
    const target = path.join(directory, `device-${i}`);
    fs.writeFileSync(target, '');
    const fd = fs.openSync('/dev/fuse', fs.constants.O_RDWR | (blocking ? 0 : fs.constants.O_NONBLOCK));
    mount({
      source: 'bench',
      target,
      fsType: 'fuse.overlaybd',
      flags: MS_RDONLY,
      options: `fd=${fd},rootmode=100400,user_id=0,group_id=0`,
    });
    return fd;
  });
}

/** The server runs in this process when called with a mode; the load comes from the parent. */
function serve(mode: 'shared' | 'separate', directory: string): void {
  const fds = connect(directory, mode === 'shared' ? 1 : 100, mode === 'shared');
  const epollFd = createEpoll();
  if (mode === 'separate') for (const [i, fd] of fds.entries()) addToEpoll(epollFd, fd, i);
  const workerData: BenchWorkerData = { mode, epollFd, fds, sizeBytes: SIZE };
  for (let i = 0; i < WORKERS; i += 1) new Worker(path.join(import.meta.dirname, 'connections-worker.ts'), { workerData });
  setInterval(() => undefined, 1000);
  process.stdout.write('ready\n');
}

function cpuSeconds(pid: number): number {
  const fields = fs.readFileSync(`/proc/${pid}/stat`, 'utf8').split(') ')[1]!.split(' ');
  return (Number(fields[11]) + Number(fields[12])) / 100;
}

interface FioResult {
  jobs: [{ read: { iops: number; bw_bytes: number; total_ios: number } }];
}

function load(target: string, args: string[]): FioResult['jobs'][0]['read'] {
  const common = [
    '--name=x',
    `--filename=${target}`,
    '--direct=1',
    '--ioengine=libaio',
    '--runtime=4',
    '--time_based',
    '--readonly',
    '--size=4g',
  ];
  const out = execFileSync('fio', [...common, '--output-format=json', ...args], { encoding: 'utf8' });
  return (JSON.parse(out) as FioResult).jobs[0].read;
}

export async function benchConnections(rounds = 3): Promise<void> {
  const cases: [string, string[]][] = [
    ['4 KiB random, depth 1', ['--rw=randread', '--bs=4k', '--iodepth=1']],
    ['4 KiB random, depth 32', ['--rw=randread', '--bs=4k', '--iodepth=32']],
    ['128 KiB sequential, depth 4', ['--rw=read', '--bs=128k', '--iodepth=4']],
  ];
  for (let round = 0; round < rounds; round += 1) {
    for (const mode of ['shared', 'separate'] as const) {
      const directory = fs.mkdtempSync(path.join(os.tmpdir(), 'obd-connections-'));
      const child = spawn(process.execPath, [import.meta.filename, mode, directory], { stdio: ['ignore', 'pipe', 'inherit'] });
      try {
        await new Promise((resolve) => child.stdout.once('data', resolve));
        for (const [name, args] of cases) {
          const before = cpuSeconds(child.pid!);
          const result = load(path.join(directory, 'device-0'), args);
          const cpu = ((cpuSeconds(child.pid!) - before) / result.total_ios) * 100_000;
          console.log(`${round}\t${mode}\t${name}\t${Math.round(result.iops)} reads/s\t${cpu.toFixed(2)} CPU s per 100,000`);
        }
      } finally {
        child.kill('SIGKILL');
        for (const name of fs.readdirSync(directory)) detachMounts(path.join(directory, name));
        fs.rmSync(directory, { recursive: true });
      }
    }
  }
}

const [mode, directory] = process.argv.slice(2);
if (import.meta.main) {
  if ((mode === 'shared' || mode === 'separate') && directory !== undefined) serve(mode, directory);
  else await benchConnections();
}
