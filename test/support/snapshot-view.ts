/** A read-only look at what a snapshotter made of an image, mounted as containerd's clients mount it. Ours. */
import { randomBytes } from 'node:crypto';
import { dirname } from 'node:path';
import type { Containerd } from './containerd.ts';
import { ContainerdSnapshots, type SnapshotMount } from './containerd-snapshots.ts';
import { run } from './process.ts';
import { Scratch } from './scratch.ts';

/** mount(2) takes one page of options. */
const MAX_OPTIONS_BYTES = 4000;

/**
 * Mounts what Prepare, View or Mounts answered (one mount). Many lower directories do not fit the kernel's page of options: their names are
 * then given relative to the directory that all share, as containerd does it.
 */
export async function mountSnapshot(mounts: readonly SnapshotMount[], target: string): Promise<void> {
  const [mount] = mounts;
  if (mount === undefined || mounts.length !== 1) throw new Error(`${mounts.length} mounts for one snapshot: ${JSON.stringify(mounts)}`);
  let options = mount.options.join(',');
  let cwd = '/';
  if (options.length > MAX_OPTIONS_BYTES) {
    const lowers =
      mount.options
        .find((option) => option.startsWith('lowerdir='))
        ?.slice('lowerdir='.length)
        .split(':') ?? [];
    cwd = dirname(lowers[0] ?? '/');
    while (!lowers.every((lower) => lower.startsWith(`${cwd}/`))) cwd = dirname(cwd);
    options = options.replaceAll(`${cwd}/`, '');
  }
  await run('mount', ['-t', mount.type, mount.source, target, '-o', options], { cwd });
}

export class SnapshotView implements AsyncDisposable {
  /** The directory with the tree. */
  readonly path: string;
  private readonly scratch: Scratch;
  private readonly client: ContainerdSnapshots;
  private readonly key: string;

  private constructor(scratch: Scratch, path: string, client: ContainerdSnapshots, key: string) {
    this.scratch = scratch;
    this.path = path;
    this.client = client;
    this.key = key;
  }

  /** Mounts a View of the committed snapshot `parent` (the chain ID of an image's layers). */
  static async mount(containerd: Containerd, snapshotter: string, parent: string): Promise<SnapshotView> {
    const scratch = await Scratch.create('view');
    const client = new ContainerdSnapshots(containerd.socket, snapshotter);
    const view = new SnapshotView(scratch, await scratch.dir('tree'), client, `view-${randomBytes(4).toString('hex')}`);
    try {
      await mountSnapshot(await client.view(view.key, parent), view.path);
      return view;
    } catch (error) {
      client[Symbol.dispose]();
      await scratch[Symbol.asyncDispose]();
      throw error;
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    try {
      await this.scratch[Symbol.asyncDispose]();
      await this.client.remove(this.key);
    } finally {
      this.client[Symbol.dispose]();
    }
  }
}
