/** Staging directories: one a job, bounded in bytes, removed at the job's end, and at the next start whatever happened. Ours. */
import fs from 'node:fs/promises';
import path from 'node:path';
import { errnoOf } from '../../base/errors.ts';
import { GIB } from '../../base/units.ts';

/** Left free on the disk whatever a job may take: containerd and the containers write there too. */
const KEEP_FREE_BYTES = 2 * GIB;
const BLOCK_BYTES = 512;

export class Staging {
  private readonly directory: string;
  private readonly maxBytes: number;

  /** `maxBytes`: of one job. */
  constructor(directory: string, maxBytes: number) {
    this.directory = directory;
    this.maxBytes = maxBytes;
  }

  /** Makes a job's directory, empty. */
  async create(job: string): Promise<string> {
    const directory = path.join(this.directory, job);
    await fs.rm(directory, { recursive: true, force: true });
    await fs.mkdir(directory, { recursive: true, mode: 0o700 });
    return directory;
  }

  async remove(job: string): Promise<void> {
    await fs.rm(path.join(this.directory, job), { recursive: true, force: true });
  }

  /** Removes what an earlier control plane left. */
  async reap(): Promise<void> {
    await fs.rm(this.directory, { recursive: true, force: true });
  }

  /** Why a job must not go on; undefined while all is well. */
  async complaint(job: string): Promise<string | undefined> {
    const directory = path.join(this.directory, job);
    const usedBytes = await allocatedBytes(directory);
    if (usedBytes > this.maxBytes) return `its staging directory holds ${usedBytes} bytes, at most ${this.maxBytes} are allowed`;
    const { bavail, bsize } = await fs.statfs(this.directory);
    if (bavail * bsize < KEEP_FREE_BYTES)
      return `the disk of ${this.directory} has ${bavail * bsize} bytes left, ${KEEP_FREE_BYTES} are kept free`;
    return undefined;
  }
}

/** What a tree takes on disk, as `du` counts it; files that go meanwhile do not count. */
export async function allocatedBytes(directory: string): Promise<number> {
  let sum = 0;
  for (const entry of await fs.readdir(directory, { withFileTypes: true })) {
    const file = path.join(directory, entry.name);
    try {
      sum += entry.isDirectory() ? await allocatedBytes(file) : (await fs.lstat(file)).blocks * BLOCK_BYTES;
    } catch (error) {
      if (errnoOf(error) !== 'ENOENT') throw error;
    }
  }
  return sum;
}
