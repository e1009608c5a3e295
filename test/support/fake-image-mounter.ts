/** Mounts in memory: a target is a directory that this object remembers. */
import fs from 'node:fs/promises';
import { AppError } from '../../plugin/base/errors.ts';
import type { ImageMounter } from '../../plugin/snapshotter/ports.ts';

export class FakeImageMounter implements ImageMounter {
  /** Target → device path. */
  readonly mounted = new Map<string, string>();
  mountCount = 0;

  async mount({ devicePath, target }: { devicePath: string; target: string }): Promise<{ fsType: string }> {
    await fs.mkdir(target, { recursive: true });
    this.mounted.set(target, devicePath);
    this.mountCount += 1;
    return { fsType: 'erofs' };
  }

  async unmount(target: string): Promise<void> {
    this.mounted.delete(target);
  }

  /** What the kernel lacks, if anything. */
  idmapProblem: string | undefined;

  async checkIdmappedLowers(directory: string): Promise<void> {
    if (this.idmapProblem === undefined) return;
    throw new AppError('FailedPrecondition', { op: 'use idmapped lowers', subject: directory, what: this.idmapProblem });
  }

  async isMounted(target: string): Promise<boolean> {
    return this.mounted.has(target);
  }
}
