/** Cgroups of either version: which files get which values. A directory stands for the kernel's where this machine lacks the version. */
import { mkdir, readFile, rm, writeFile } from 'node:fs/promises';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { CgroupParent, findHierarchies, parseCgroupMounts } from '../../../../plugin/kernel/cgroup.ts';
import { Scratch } from '../../../support/scratch.ts';

let scratch: Scratch;
beforeEach(async () => {
  scratch = await Scratch.create('cgroup');
});
afterEach(() => scratch[Symbol.asyncDispose]());

const LIMITS = { cpus: 1.5, memoryBytes: 2 ** 30 };

test('mounts are read from mountinfo, whatever their options', () => {
  const text = [
    '31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755',
    '32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:9 - cgroup cgroup rw,cpu,cpuacct',
    '41 31 0:38 / /sys/fs/cgroup/unified rw shared:1 master:2 - cgroup2 cgroup2 rw,nsdelegate',
    '',
  ].join('\n');
  expect(parseCgroupMounts(text)).toEqual([
    { type: 'cgroup', mountPoint: '/sys/fs/cgroup/cpu,cpuacct', options: ['rw', 'cpu', 'cpuacct'] },
    { type: 'cgroup2', mountPoint: '/sys/fs/cgroup/unified', options: ['rw', 'nsdelegate'] },
  ]);
});

test('version 2: controllers are handed down, then limits are set in one directory', async () => {
  const root = await scratch.dir('v2');
  await writeFile(`${root}/cgroup.controllers`, 'cpuset cpu io memory pids\n');
  const found = await findHierarchies(`30 23 0:26 / ${root} rw - cgroup2 cgroup2 rw\n`);
  expect([...found.keys()].sort()).toEqual(['cpu', 'memory']);
  const group = await new CgroupParent('obd', found).create('job-1', LIMITS);
  await group.add(123);
  const read = (name: string): Promise<string> => readFile(`${root}/${name}`, 'utf8');
  expect(await read('cgroup.subtree_control')).toMatch(/^\+(?:cpu|memory)$/);
  expect(await read('obd/cgroup.subtree_control')).toMatch(/^\+(?:cpu|memory)$/);
  expect(await read('obd/job-1/cpu.max')).toBe('150000 100000');
  expect(await read('obd/job-1/memory.max')).toBe(String(2 ** 30));
  expect(await read('obd/job-1/cgroup.procs')).toBe('123');
  await writeFile(`${root}/obd/job-1/memory.events`, 'low 0\nhigh 0\nmax 7\noom 1\noom_kill 1\n');
  expect(await group.ranOutOfMemory()).toBe(true);
  await writeFile(`${root}/obd/job-1/memory.events`, 'oom_kill 0\n');
  expect(await group.ranOutOfMemory()).toBe(false);
});

test('version 1: each controller has its own directory', async () => {
  const [cpu, memory] = [await scratch.dir('cpu'), await scratch.dir('memory')];
  const found = await findHierarchies(`1 0 0:1 / ${cpu} rw - cgroup cgroup rw,cpu\n2 0 0:2 / ${memory} rw - cgroup cgroup rw,memory\n`);
  const group = await new CgroupParent('obd', found).create('job-1', LIMITS);
  await group.add(5);
  expect(await readFile(`${cpu}/obd/job-1/cpu.cfs_quota_us`, 'utf8')).toBe('150000');
  expect(await readFile(`${cpu}/obd/job-1/cpu.cfs_period_us`, 'utf8')).toBe('100000');
  expect(await readFile(`${memory}/obd/job-1/memory.limit_in_bytes`, 'utf8')).toBe(String(2 ** 30));
  for (const place of [cpu, memory]) expect(await readFile(`${place}/obd/job-1/cgroup.procs`, 'utf8')).toBe('5');
  await writeFile(`${memory}/obd/job-1/memory.oom_control`, 'oom_kill_disable 0\nunder_oom 0\noom_kill 2\n');
  expect(await group.ranOutOfMemory()).toBe(true);
});

test('a machine without the controllers is told of, and nothing is made', async () => {
  await expect(new CgroupParent('obd', await findHierarchies('')).create('job-1', LIMITS)).rejects.toThrowError(/cpu, memory/);
});

test('cgroups of an earlier control plane are removed; what is not there is no error', async () => {
  const [cpu, memory] = [await scratch.dir('cpu'), await scratch.dir('memory')];
  const found = await findHierarchies(`1 0 0:1 / ${cpu} rw - cgroup cgroup rw,cpu\n2 0 0:2 / ${memory} rw - cgroup cgroup rw,memory\n`);
  const parent = new CgroupParent('obd', found);
  await parent.reap();
  // The kernel's directories can be removed with their files in them; these must be empty.
  await mkdir(`${cpu}/obd/job-7`, { recursive: true });
  await parent.remove();
  await expect(readFile(`${cpu}/obd`)).rejects.toMatchObject({ code: 'ENOENT' });
  await rm(`${memory}/obd`, { recursive: true, force: true });
});
