/**
 * Metadata files that were taken out of index-only layers: `<root>/indexes/<hex of their SHA-256>`. Equal content is one file, whatever
 * images brought it. A file lives while a snapshot or an open device needs its digest, and a while after a resolution counted on it.
 */
import fsSync from 'node:fs';
import fs from 'node:fs/promises';
import path from 'node:path';
import type { DependencyStore } from '../../db/dependency-store.ts';
import { sha256 } from '../base/digest.ts';
import { AppError, errnoOf } from '../base/errors.ts';
import type { BlobSource, LayerSpec } from '../file/device-spec.ts';
import { removeDurably, writeDurably } from '../file/durable-file.ts';
import { blobsOfLayer } from './accelerated.ts';
import { wallTimeUs } from './wall-time.ts';

/** Longer than a resolution is believed (see image-decider.ts), so that a file that a pull counts on is there when its row comes. */
const KEEP_UNNEEDED_US = 30 * 60 * 1_000_000;

const FILE_NAME = /^[0-9a-f]{64}$/;

export class IndexFiles {
  private readonly directory: string;
  private readonly dependencies: DependencyStore;
  /** By name; two resolutions may bring the same file at the same time. */
  private readonly writing = new Map<string, Promise<void>>();
  /** By name; who counts on a file again waits until it is known to be gone. */
  private readonly removing = new Map<string, Promise<void>>();

  constructor(rootDir: string, dependencies: DependencyStore) {
    this.directory = path.join(rootDir, 'indexes');
    this.dependencies = dependencies;
    fsSync.mkdirSync(this.directory, { recursive: true, mode: 0o700 });
  }

  /** Makes the bytes a durable file, unless they are one. Errors: ResourceExhausted (disk full), Internal. */
  async keep(bytes: Uint8Array): Promise<BlobSource> {
    const digest = sha256(bytes);
    const name = digest.slice('sha256:'.length);
    this.dependencies.touch([digest], wallTimeUs());
    let work = this.writing.get(name);
    if (work === undefined) {
      work = this.write(name, bytes).finally(() => this.writing.delete(name));
      this.writing.set(name, work);
    }
    await work;
    return { digest, sizeBytes: bytes.length, repositories: [], localPath: path.join(this.directory, name) };
  }

  /** True when every metadata file of the layers is there; they then stay for a while, for a pull that counts on them. */
  async hold(layers: readonly LayerSpec[]): Promise<boolean> {
    const files = layers.flatMap((layer) => (layer.kind === 'index' ? blobsOfLayer(layer).filter((blob) => blob !== layer.target) : []));
    this.dependencies.touch(
      files.map((file) => file.digest),
      wallTimeUs(),
    );
    for (const file of files) await this.removed(file.digest.slice('sha256:'.length));
    const sizes = await Promise.all(files.map((file) => sizeOf(file.localPath ?? '')));
    return files.every((file, i) => sizes[i] === file.sizeBytes);
  }

  /** Deletes files that nothing needs, and what killed writers left. Returns how many went. */
  async sweep(): Promise<number> {
    const sinceUs = wallTimeUs() - KEEP_UNNEEDED_US;
    let removed = 0;
    for (const name of await fs.readdir(this.directory)) {
      const isFile = FILE_NAME.test(name);
      const ofFile = name.slice(0, 64);
      await this.removed(ofFile);
      if (this.writing.has(ofFile) || (isFile && this.dependencies.isNeeded(`sha256:${name}`, sinceUs))) continue;
      const removing = removeDurably(path.join(this.directory, name)).finally(() => this.removing.delete(ofFile));
      this.removing.set(ofFile, removing);
      await removing;
      removed += 1;
    }
    this.dependencies.removeUnneeded(sinceUs);
    return removed;
  }

  /** Resolves when nothing of this name is being removed. */
  private async removed(name: string): Promise<void> {
    await Promise.allSettled([this.removing.get(name)]);
  }

  private async write(name: string, bytes: Uint8Array): Promise<void> {
    const filePath = path.join(this.directory, name);
    await this.removed(name);
    try {
      // The name is the content's digest and the rename is atomic: a file of the right size is the right file.
      if ((await sizeOf(filePath)) === bytes.length) return;
      await writeDurably(filePath, bytes);
    } catch (cause) {
      const isFull = errnoOf(cause) === 'ENOSPC' || errnoOf(cause) === 'EDQUOT';
      throw new AppError(isFull ? 'ResourceExhausted' : 'Internal', {
        op: 'keep index file',
        subject: filePath,
        what: cause instanceof Error ? cause.message : String(cause),
        cause,
      });
    }
  }
}

async function sizeOf(filePath: string): Promise<number | undefined> {
  try {
    return (await fs.lstat(filePath)).size;
  } catch (error) {
    if (errnoOf(error) === 'ENOENT') return undefined;
    throw error;
  }
}
