/** A snapshotter in a scratch directory with fakes around it, for tests in one process: pulls as containerd does, restarts, inspects. */
import fs from 'node:fs/promises';
import os from 'node:os';
import path from 'node:path';
import type { Digest } from '../../plugin/base/digest.ts';
import { isAppError } from '../../plugin/base/errors.ts';
import { silentLogger } from '../../plugin/base/log.ts';
import { chainIdOf } from '../../plugin/snapshotter/chain-id.ts';
import { type SnapshotterOptions, type SnapshotterService, startSnapshotter } from '../../plugin/snapshotter/service.ts';
import { FakeBlockDevices } from './fake-block-devices.ts';
import { FakeImageMounter } from './fake-image-mounter.ts';
import { FakeImageResolver, type FakeLayer } from './fake-image-resolver.ts';

export const NEVER_ABORTED = new AbortController().signal;

/** What a pull did with each layer. */
export type PullStep = 'exists' | 'remote' | 'downloaded';

export class SnapshotterHarness implements AsyncDisposable {
  readonly root: string;
  readonly devices = new FakeBlockDevices();
  readonly mounter = new FakeImageMounter();
  readonly resolver = new FakeImageResolver();
  service!: SnapshotterService;
  private readonly overrides: Partial<SnapshotterOptions>;
  private extractions = 0;

  private constructor(root: string, overrides: Partial<SnapshotterOptions>) {
    this.root = root;
    this.overrides = overrides;
  }

  static async open(overrides: Partial<SnapshotterOptions> = {}, kernel: { idmapProblem?: string } = {}): Promise<SnapshotterHarness> {
    const harness = new SnapshotterHarness(await fs.mkdtemp(path.join(os.tmpdir(), 'obd-snap-')), overrides);
    harness.mounter.idmapProblem = kernel.idmapProblem;
    try {
      await harness.start();
      return harness;
    } catch (error) {
      await fs.rm(harness.root, { recursive: true, force: true });
      throw error;
    }
  }

  get snapshotter() {
    return this.service.snapshotter;
  }

  async start(): Promise<void> {
    this.service = await startSnapshotter(
      {
        rootDir: path.join(this.root, 'root'),
        socketPath: path.join(this.root, 'run', 'snapshotter.sock'),
        // Nothing waits for these but what is to wait: a machine that is busy for a moment reaches none of them.
        prepareDeadlineMs: 60_000,
        resolveDeadlineMs: 40_000,
        mountOptions: [],
        remapIds: false,
        watchIntervalMs: 3_600_000,
        twins: { isEnabled: true, prefer: 'full', lookupBudgetMs: 10_000, negativeTtlMs: 60_000, trusted: [], elsewhere: [] },
        closeDelayMs: 0,
        freshMs: 0,
        ...this.overrides,
      },
      { devices: this.devices, mounter: this.mounter, resolver: this.resolver, logger: silentLogger },
    );
  }

  async restart(): Promise<void> {
    await this.service[Symbol.asyncDispose]();
    await this.start();
  }

  /**
   * Pulls an image layer by layer with CRI's labels: Stat, Prepare, and where no layer was ready, `unpack` into the mount and Commit.
   * Returns the top snapshot's key and what happened.
   */
  async pull(
    image: string,
    layers: readonly FakeLayer[],
    options: { manifestDigest?: string; unpack?: (directory: string, layer: FakeLayer) => Promise<void> } = {},
  ): Promise<{ top: string; steps: PullStep[] }> {
    const steps: PullStep[] = [];
    let parent = '';
    for (const [index, layer] of layers.entries()) {
      const ref = chainIdOf(layers.slice(0, index + 1).map((below) => (below.diffId ?? below.digest) as Digest));
      const existing = this.find(ref, parent);
      if (existing !== undefined) {
        parent = existing;
        steps.push('exists');
        continue;
      }
      const labels: Record<string, string> = {
        ...layer.annotations,
        'containerd.io/snapshot.ref': ref,
        'containerd.io/snapshot/cri.image-ref': image,
        'containerd.io/snapshot/cri.layer-digest': layer.digest,
      };
      if (options.manifestDigest !== undefined) labels['containerd.io/snapshot/cri.manifest-digest'] = options.manifestDigest;
      const key = `extract-${this.extractions++} ${ref}`;
      try {
        const [mount] = await this.snapshotter.prepare(key, parent, labels, NEVER_ABORTED);
        const upper = mount!.options.find((option) => option.startsWith('upperdir='))?.slice('upperdir='.length) ?? mount!.source;
        await options.unpack?.(upper, layer);
        await this.snapshotter.commit(ref, key, labels, NEVER_ABORTED);
        parent = ref;
        steps.push('downloaded');
      } catch (error) {
        if (!isAppError(error, 'AlreadyExists')) throw error;
        const found = this.find(ref, parent);
        if (found === undefined) throw new Error(`containerd would not find chain ${ref} on ${parent}`, { cause: error });
        parent = found;
        steps.push('remote');
      }
    }
    return { top: parent, steps };
  }

  /** As containerd looks for the snapshot that an AlreadyExists speaks of. */
  private find(ref: string, parent: string): string | undefined {
    const filter = `labels."containerd.io/snapshot.ref"==${ref},parent==${JSON.stringify(parent)}`;
    return [...this.snapshotter.list([filter])].flat().find((info) => info.kind === 'committed')?.name;
  }

  /** Prepares a container's snapshot and returns its overlay lowers, top first. */
  async container(key: string, parent: string): Promise<string[]> {
    const [mount] = await this.snapshotter.prepare(key, parent, {}, NEVER_ABORTED);
    return (
      mount!.options
        .find((option) => option.startsWith('lowerdir='))
        ?.slice('lowerdir='.length)
        .split(':') ?? []
    );
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.service[Symbol.asyncDispose]();
    await fs.rm(this.root, { recursive: true, force: true });
  }
}
