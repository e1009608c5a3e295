/**
 * A cgroup for each job: CPU time and memory are limited for the process and all its threads, whatever it reads. Works with hierarchies
 * of version 1 (one a controller) and 2 (one for all), whichever has the controller. Sources: cgroups(7), the kernel's cgroup-v1/memory.rst,
 * scheduler/sched-bwc.rst and cgroup-v2.rst.
 *
 *   <mount of cpu>/<parent>/<job>    <mount of memory>/<parent>/<job>     (the same directory in version 2)
 */
import fs from 'node:fs/promises';
import path from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { sha256 } from '../base/digest.ts';
import { errnoOf } from '../base/errors.ts';

export type Controller = 'cpu' | 'memory';
const CONTROLLERS: readonly Controller[] = ['cpu', 'memory'];

export interface CgroupLimits {
  /** Processors' worth of time. */
  cpus: number;
  memoryBytes: number;
}

/** Where a controller is, as the root of its hierarchy is mounted here. */
export interface Hierarchy {
  version: 1 | 2;
  mountPoint: string;
}

/** The kernel's usual period; a quota is a share of it. */
const PERIOD_US = 100_000;
/** The last thread of a killed process leaves its cgroup within milliseconds; longer means that it hangs in the kernel. */
const REMOVE_LIMIT_MS = 5_000;
const REMOVE_STEP_MS = 20;

/** Reads mountinfo (proc_pid_mountinfo(5)) for cgroup mounts. */
export function parseCgroupMounts(mountinfo: string): { type: 'cgroup' | 'cgroup2'; mountPoint: string; options: readonly string[] }[] {
  const found: ReturnType<typeof parseCgroupMounts> = [];
  for (const line of mountinfo.split('\n')) {
    const [left, right] = line.split(' - ');
    const mountPoint = left?.split(' ')[4];
    const [type, , options = ''] = right?.split(' ') ?? [];
    if (mountPoint === undefined || (type !== 'cgroup' && type !== 'cgroup2')) continue;
    found.push({ type, mountPoint, options: options.split(',') });
  }
  return found;
}

/** Which hierarchy has each controller. `mountinfo`: that of this process unless given. */
export async function findHierarchies(mountinfo?: string): Promise<Map<Controller, Hierarchy>> {
  const found = new Map<Controller, Hierarchy>();
  for (const { type, mountPoint, options } of parseCgroupMounts(mountinfo ?? (await fs.readFile('/proc/self/mountinfo', 'utf8')))) {
    const names = type === 'cgroup' ? options : (await fs.readFile(path.join(mountPoint, 'cgroup.controllers'), 'utf8')).trim().split(' ');
    for (const controller of CONTROLLERS) {
      if (names.includes(controller)) found.set(controller, { version: type === 'cgroup' ? 1 : 2, mountPoint });
    }
  }
  return found;
}

/** The cgroup of one job. */
export class JobCgroup {
  private readonly directories: readonly string[];
  private readonly memory: { version: 1 | 2; directory: string } | undefined;

  constructor(directories: readonly string[], memory: { version: 1 | 2; directory: string } | undefined) {
    this.directories = directories;
    this.memory = memory;
  }

  /** Moves a process in; its threads and children to come are in it too. */
  async add(pid: number): Promise<void> {
    for (const directory of this.directories) await fs.writeFile(path.join(directory, 'cgroup.procs'), String(pid));
  }

  /** True when the kernel killed something in it for want of memory. */
  async ranOutOfMemory(): Promise<boolean> {
    if (this.memory === undefined) return false;
    const { version, directory } = this.memory;
    const text = await fs.readFile(path.join(directory, version === 1 ? 'memory.oom_control' : 'memory.events'), 'utf8');
    return /^oom_kill [1-9]/m.test(text);
  }

  /** Kills what is left in it and removes it. Rejects when the kernel does not let go of it. */
  async remove(): Promise<void> {
    for (const directory of this.directories) await removeCgroup(directory);
  }
}

/** The name of a control plane's cgroups for one kind of work: its own, told by the product's root directory. */
export function cgroupNameOf(work: 'convert' | 'cache', rootDir: string): string {
  return `overlaybd-${work}-${sha256(rootDir).slice(7, 15)}`;
}

/** The cgroups of one control plane. */
export class CgroupParent {
  private readonly name: string;
  private readonly hierarchies: ReadonlyMap<Controller, Hierarchy>;

  /** `name` is a directory below the root of each hierarchy; its own for each control plane, since {@link reap} empties it. */
  constructor(name: string, hierarchies: ReadonlyMap<Controller, Hierarchy>) {
    this.name = name;
    this.hierarchies = hierarchies;
  }

  /** Makes a job's cgroup with its limits. Rejects with the system's error when the machine does not let us; nothing is left then. */
  async create(job: string, limits: CgroupLimits): Promise<JobCgroup> {
    const missing = CONTROLLERS.filter((controller) => !this.hierarchies.has(controller));
    if (missing.length > 0) throw new Error(`no cgroup hierarchy has the controllers ${missing.join(', ')}`);
    const made: string[] = [];
    try {
      for (const [controller, hierarchy] of this.hierarchies) await this.prepare(controller, hierarchy, job, limits, made);
    } catch (error) {
      for (const directory of made) await removeCgroup(directory);
      throw error;
    }
    const memory = this.hierarchies.get('memory')!;
    return new JobCgroup(made, { version: memory.version, directory: path.join(memory.mountPoint, this.name, job) });
  }

  /** Kills and removes every cgroup of an earlier control plane of the same name. */
  async reap(): Promise<void> {
    for (const { mountPoint } of this.hierarchies.values()) {
      const parent = path.join(mountPoint, this.name);
      for (const job of await subdirectories(parent)) await removeCgroup(path.join(parent, job));
    }
  }

  /** Removes the parent itself; for the end of the control plane. */
  async remove(): Promise<void> {
    await this.reap();
    for (const { mountPoint } of this.hierarchies.values()) await removeCgroup(path.join(mountPoint, this.name));
  }

  private async prepare(controller: Controller, hierarchy: Hierarchy, job: string, limits: CgroupLimits, made: string[]): Promise<void> {
    const parent = path.join(hierarchy.mountPoint, this.name);
    const directory = path.join(parent, job);
    await fs.mkdir(parent, { recursive: true });
    if (hierarchy.version === 2) {
      for (const above of [hierarchy.mountPoint, parent]) await fs.writeFile(path.join(above, 'cgroup.subtree_control'), `+${controller}`);
    }
    if (!made.includes(directory)) {
      await fs.mkdir(directory);
      made.push(directory);
    }
    for (const [file, value] of limitFiles(controller, hierarchy.version, limits)) await fs.writeFile(path.join(directory, file), value);
  }
}

function limitFiles(controller: Controller, version: 1 | 2, { cpus, memoryBytes }: CgroupLimits): [string, string][] {
  const quotaUs = String(Math.round(cpus * PERIOD_US));
  if (controller === 'memory') return [[version === 1 ? 'memory.limit_in_bytes' : 'memory.max', String(memoryBytes)]];
  if (version === 2) return [['cpu.max', `${quotaUs} ${PERIOD_US}`]];
  return [
    ['cpu.cfs_period_us', String(PERIOD_US)],
    ['cpu.cfs_quota_us', quotaUs],
  ];
}

async function subdirectories(directory: string): Promise<string[]> {
  try {
    return (await fs.readdir(directory, { withFileTypes: true })).filter((entry) => entry.isDirectory()).map((entry) => entry.name);
  } catch (error) {
    if (errnoOf(error) === 'ENOENT') return [];
    throw error;
  }
}

async function removeCgroup(directory: string): Promise<void> {
  for (let waitedMs = 0; ; waitedMs += REMOVE_STEP_MS) {
    try {
      await fs.rmdir(directory);
      return;
    } catch (error) {
      if (errnoOf(error) === 'ENOENT') return;
      if (errnoOf(error) !== 'EBUSY' || waitedMs >= REMOVE_LIMIT_MS) throw error;
      await killMembers(directory);
      await delay(REMOVE_STEP_MS);
    }
  }
}

async function killMembers(directory: string): Promise<void> {
  const text = await fs.readFile(path.join(directory, 'cgroup.procs'), 'utf8');
  for (const pid of text.split('\n').filter(Boolean).map(Number)) {
    // 0 is a process of another pid namespace; a signal to it would go to our own group.
    if (pid <= 0 || pid === process.pid) continue;
    try {
      process.kill(pid, 'SIGKILL');
    } catch (error) {
      if (errnoOf(error) !== 'ESRCH') throw error;
    }
  }
}
