/** The registry of the benches that fetch: the Go program in ../go/blobserver, in a process of its own, with a round trip and a rate. Ours. */
import { readFileSync } from 'node:fs';
import { link, mkdir } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import type { LayerSpec } from '../../../plugin/file/device-spec.ts';
import { goBinary } from '../../support/go-build.ts';
import type { Layer } from '../../support/oci-image.ts';
import { Daemon, run } from '../../support/process.ts';
import { Scratch } from '../../support/scratch.ts';
import { cpuSeconds } from './measure.ts';

export interface BlobServerOptions {
  layers: readonly Layer[];
  roundTripMs: number;
  /** 0: unlimited. */
  rateBytesPerS: number;
}

export class BlobServer implements AsyncDisposable {
  readonly host: string;
  private readonly daemon: Daemon;
  private readonly scratch: Scratch;

  private constructor(host: string, daemon: Daemon, scratch: Scratch) {
    this.host = host;
    this.daemon = daemon;
    this.scratch = scratch;
  }

  static async start(options: BlobServerOptions): Promise<BlobServer> {
    const sourceDirectory = resolve(import.meta.dirname, '../go/blobserver');
    const command = await goBinary('blobserver', { sourceDirectory });
    const scratch = await Scratch.create('blobs');
    const directory = scratch.join('blobs');
    await mkdir(directory);
    for (const { digest, blob } of options.layers) await linkOrCopy(blob as string, join(directory, digest));
    const args = ['-directory', directory, '-round-trip', `${options.roundTripMs}ms`, '-rate', String(options.rateBytesPerS)];
    const daemon = await Daemon.start({ name: 'blobserver', command, args, logPath: scratch.join('blobserver.log') });
    const address = (): string => readFileSync(daemon.logPath, 'utf8').split('\n')[0] ?? '';
    await daemon.waitReady('its address', async () => /^127\.0\.0\.1:\d+$/.test(address()));
    return new BlobServer(address(), daemon, scratch);
  }

  /** The layers as blockd is told to fetch them. */
  layersOf(layers: readonly Layer[]): LayerSpec[] {
    const repositories = [{ host: this.host, repository: 'bench/app' }];
    return layers.map(({ digest, sizeBytes }) => ({ kind: 'full', blob: { digest, sizeBytes, repositories } }));
  }

  url(layer: Layer): string {
    return `http://${this.host}/v2/bench/app/blobs/${layer.digest}`;
  }

  cpuSeconds(): number {
    return cpuSeconds(this.daemon.pid);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.daemon.stop();
    await this.scratch[Symbol.asyncDispose]();
  }
}

/** Hard link where the file system allows it; else a copy that keeps holes. */
async function linkOrCopy(from: string, to: string): Promise<void> {
  try {
    await link(from, to);
  } catch {
    await run('cp', ['--sparse=always', from, to]);
  }
}
