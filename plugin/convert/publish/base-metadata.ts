/**
 * Index-only layers of a base: their small blobs are fetched whole, and of those only the file-system metadata is kept; the builder reads
 * nothing else. Ours.
 */
import { promisify } from 'node:util';
import { gunzip } from 'node:zlib';
import { type Digest, sha256 } from '../../base/digest.ts';
import { AppError } from '../../base/errors.ts';
import { MIB } from '../../base/units.ts';
import type { LayerSpec } from '../../file/device-spec.ts';
import { MemoryFile, type RandomAccessFile } from '../../file/file.ts';
import { ANNOTATION, LAYER_VERSION } from '../../image/oci/annotations.ts';
import { MAX_TURBO_BLOB_BYTES, MAX_TURBO_TAR_BYTES, parseTurboLayer } from '../../image/turbo/turbo-layer.ts';
import type { RegistryClient } from '../../registry/client.ts';
import type { Repository } from '../../registry/reference.ts';
import type { KnownLayer } from './ledger.ts';

/** Of all layers of a base together, in memory. An image of a million files has some 50 MiB. */
const MAX_METADATA_BYTES = 256 * MIB;
/** Larger than any layer: mappings into the original lie inside, whatever its size. */
const TARGET_BYTES = Number.MAX_SAFE_INTEGER;

const unzip = promisify(gunzip);

/** The original layer of an index: content of files, which a builder never asks for. */
class UnreadTarget implements RandomAccessFile {
  readonly sizeBytes = TARGET_BYTES;
  private readonly digest: Digest;

  constructor(digest: Digest) {
    this.digest = digest;
  }

  readSync(): boolean {
    throw new AppError('DataLoss', { op: 'read base', subject: this.digest, what: 'metadata is mapped into the original layer' });
  }
}

export function isIndexLayer(layer: KnownLayer): boolean {
  return layer.annotations[ANNOTATION.version] === LAYER_VERSION.turbo;
}

export class BaseMetadata {
  /** The blobs of the layers' descriptions, by digest. */
  readonly files = new Map<string, RandomAccessFile>();
  private readonly client: RegistryClient;
  private readonly repository: Repository;
  private totalBytes = 0;

  constructor(client: RegistryClient, repository: Repository) {
    this.client = client;
    this.repository = repository;
  }

  /** Fetches a layer's metadata. Throws FailedPrecondition when it is too large, DataLoss when it is malformed, and errors of the registry. */
  async specOf(layer: KnownLayer, signal: AbortSignal): Promise<LayerSpec> {
    const { digest, sizeBytes, annotations } = layer;
    const refuse = (code: 'FailedPrecondition' | 'DataLoss', what: string, cause?: unknown): AppError =>
      new AppError(code, { op: 'open base', subject: digest, what, ...(cause === undefined ? {} : { cause }) });
    if (sizeBytes > MAX_TURBO_BLOB_BYTES)
      throw refuse('FailedPrecondition', `an index of ${sizeBytes} bytes, at most ${MAX_TURBO_BLOB_BYTES}`);
    const bytes = await this.client.getSmallBlob(this.repository, { digest, sizeBytes }, { signal, maxBytes: MAX_TURBO_BLOB_BYTES });
    let tar: Uint8Array;
    try {
      tar = await unzip(bytes, { maxOutputLength: MAX_TURBO_TAR_BYTES });
    } catch (cause) {
      throw refuse('DataLoss', `it does not uncompress to at most ${MAX_TURBO_TAR_BYTES} bytes`, cause);
    }
    const view = parseTurboLayer(tar, digest).metaByFsType.get('erofs');
    const target = annotations[ANNOTATION.turboTargetDigest] as Digest | undefined;
    if (view === undefined || target === undefined) throw refuse('FailedPrecondition', 'it is not an index of this builder');
    // A copy, so that the rest of the tar can go.
    const meta = Uint8Array.from(view);
    this.totalBytes += meta.length;
    if (this.totalBytes > MAX_METADATA_BYTES) throw refuse('FailedPrecondition', `more than ${MAX_METADATA_BYTES} bytes of metadata`);
    const metaDigest = sha256(meta);
    this.files.set(metaDigest, new MemoryFile(meta));
    this.files.set(target, new UnreadTarget(target));
    return {
      kind: 'index',
      meta: { digest: metaDigest, sizeBytes: meta.length, repositories: [] },
      target: { digest: target, sizeBytes: TARGET_BYTES, repositories: [] },
    };
  }
}
