/**
 * The layers that exist already, as the base that the builder goes on from: their merged device, of which only metadata is fetched, as
 * ranges of the blobs, into one staging file a blob. Every chunk is checked against the layer's list of chunk digests before it is
 * read. Reads of the builder are synchronous, so everything it will ask for is made local beforehand: the tree is restored again and
 * again, fetching what was missing, until nothing is. Ours.
 */
import assert from 'node:assert';
import { createHash } from 'node:crypto';
import { closeSync, ftruncateSync, openSync, readSync, unlinkSync, writeSync } from 'node:fs';
import path from 'node:path';
import { systemClock } from '../../base/clock.ts';
import { type Digest, sha256 } from '../../base/digest.ts';
import { AppError } from '../../base/errors.ts';
import { KIB, MIB } from '../../base/units.ts';
import { blobsOf, createDeviceFile, DeviceOpener, type DeviceTables } from '../../file/device-file.ts';
import type { DeviceSpec, LayerSpec } from '../../file/device-spec.ts';
import { MissingList, type MissingRanges, type RandomAccessFile } from '../../file/file.ts';
import { restoreTree } from '../../image/erofs/restore-tree.ts';
import { CHUNK_LIST_ANNOTATION, type ChunkList, parseChunkList } from '../../image/oci/chunk-list.ts';
import { loadCodec } from '../../kernel/codecs.ts';
import type { BlobIdentity } from '../../registry/blobs.ts';
import type { RegistryClient } from '../../registry/client.ts';
import type { Repository } from '../../registry/reference.ts';
import { withRetries } from '../../registry/retry.ts';
import type { ConvertedBase } from '../build/options.ts';
import { BaseMetadata, isIndexLayer } from './base-metadata.ts';
import type { KnownLayer } from './ledger.ts';

/** First fetch at a place; doubled while misses go on behind it, since the metadata of a layer lies together. */
const FIRST_FETCH_BYTES = 512 * KIB;
const LAST_FETCH_BYTES = 16 * MIB;
/** Rounds of opening and restoring: two a layer and some for each doubling; a base that needs more is converted anew. */
const MAX_ROUNDS = 2000;
/** A list of a 2 TiB blob; the allocation is bounded by it. */
const MAX_LIST_BYTES = 1024 * MIB;
/** Bytes of the list's tar header between the last covered byte and the list. */
const LIST_HEAD_BYTES = 512;

/** Thrown by a read of bytes that are not local; caught here, or by the caller as a reason to convert without the base. */
class BaseMiss extends AppError {
  readonly missing: MissingList;

  constructor(missing: MissingList) {
    super('FailedPrecondition', { op: 'read base', subject: 'metadata', what: 'bytes that were not fetched beforehand are needed' });
    this.missing = missing;
  }
}

/** True when the base itself cannot be used, and converting without it can succeed. */
export function isBaseUnusable(error: unknown): boolean {
  return error instanceof BaseMiss || (error instanceof AppError && error.cause !== undefined && isBaseUnusable(error.cause));
}

/** One blob: a sparse staging file, and which of its chunks are in it. */
class PartialBlob implements RandomAccessFile, Disposable {
  readonly sizeBytes: number;
  readonly digest: Digest;
  private readonly path: string;
  private readonly fd: number;
  private readonly list: ChunkList;
  private readonly blobId: number;
  private readonly sums: Uint8Array;
  private readonly present: Uint8Array;
  private nextOffset = -1;
  private fetchBytes = FIRST_FETCH_BYTES;

  constructor(layer: KnownLayer, list: ChunkList, sums: Uint8Array, blobId: number, file: string) {
    this.sizeBytes = layer.sizeBytes;
    this.digest = layer.digest;
    this.list = list;
    this.sums = sums;
    this.blobId = blobId;
    this.path = file;
    this.present = new Uint8Array(sums.length / 32);
    this.fd = openSync(file, 'wx+', 0o600);
    ftruncateSync(this.fd, layer.sizeBytes);
  }

  /** Bytes that the list covers; nothing behind them is ever read. */
  private get coveredBytes(): number {
    return this.list.offsetBytes - LIST_HEAD_BYTES;
  }

  readSync(offsetBytes: number, lengthBytes: number, target: Uint8Array, targetOffset: number, missing: MissingRanges): boolean {
    const { chunkBytes } = this.list;
    const end = Math.min(offsetBytes + lengthBytes, this.coveredBytes);
    for (let at = Math.floor(offsetBytes / chunkBytes); at * chunkBytes < end; at += 1) {
      if (this.present[at] === 1) continue;
      missing.add(this.blobId, offsetBytes, lengthBytes);
      return false;
    }
    // What lies behind the covered part is no part of the layer: zeros, as at the end of a tar.
    target.fill(0, targetOffset, targetOffset + lengthBytes);
    for (let done = 0; offsetBytes + done < end; ) {
      const count = readSync(this.fd, target, targetOffset + done, end - offsetBytes - done, offsetBytes + done);
      if (count === 0) break;
      done += count;
    }
    return true;
  }

  /** Makes a range local, and what probably follows it. */
  async fetch(client: RegistryClient, repository: Repository, offset: number, length: number, signal: AbortSignal): Promise<void> {
    const { chunkBytes } = this.list;
    const isNext = offset <= this.nextOffset && this.nextOffset <= offset + length + chunkBytes;
    this.fetchBytes = isNext ? Math.min(this.fetchBytes * 2, LAST_FETCH_BYTES) : FIRST_FETCH_BYTES;
    const last = Math.min(Math.max(offset + length, offset + this.fetchBytes), this.coveredBytes);
    let begin = Math.floor(offset / chunkBytes) * chunkBytes;
    while (begin < last) {
      if (this.present[begin / chunkBytes] === 1) {
        begin += chunkBytes;
        continue;
      }
      let end = begin;
      while (end < last && end - begin < LAST_FETCH_BYTES && this.present[end / chunkBytes] !== 1) end += chunkBytes;
      end = Math.min(end, this.coveredBytes);
      this.keep(begin, await fetchBytes(client, repository, this, begin, end - begin, signal));
      begin = Math.ceil(end / chunkBytes) * chunkBytes;
    }
    this.nextOffset = begin;
  }

  private keep(offset: number, bytes: Uint8Array): void {
    const { chunkBytes } = this.list;
    for (let at = 0; at < bytes.length; at += chunkBytes) {
      const chunk = bytes.subarray(at, at + chunkBytes);
      const index = (offset + at) / chunkBytes;
      if (Buffer.compare(createHash('sha256').update(chunk).digest(), this.sums.subarray(index * 32, index * 32 + 32)) !== 0) {
        const what = `the chunk at ${offset + at} is not the one that the layer's list names`;
        throw new AppError('DataLoss', { op: 'read base', subject: this.digest, what, details: { offset: offset + at } });
      }
      for (let done = 0; done < chunk.length; ) done += writeSync(this.fd, chunk, done, chunk.length - done, offset + at + done);
      this.present[index] = 1;
    }
  }

  [Symbol.dispose](): void {
    closeSync(this.fd);
    unlinkSync(this.path);
  }
}

async function fetchBytes(
  client: RegistryClient,
  repository: Repository,
  { digest, sizeBytes }: BlobIdentity,
  offset: number,
  length: number,
  signal: AbortSignal,
): Promise<Uint8Array> {
  const fetchOnce = () => client.fetchRange(repository, digest, sizeBytes, offset, length, { signal });
  return (await withRetries(systemClock, signal, fetchOnce)).bytes;
}

async function openBlob(
  client: RegistryClient,
  repository: Repository,
  layer: KnownLayer,
  blobId: number,
  file: string,
  signal: AbortSignal,
): Promise<PartialBlob> {
  const refuse = (code: 'FailedPrecondition' | 'DataLoss', what: string): AppError =>
    new AppError(code, { op: 'open base', subject: layer.digest, what });
  const annotation = layer.annotations[CHUNK_LIST_ANNOTATION];
  if (annotation === undefined) throw refuse('FailedPrecondition', 'it has no list of chunk digests');
  const list = parseChunkList(annotation, layer.digest);
  const coveredBytes = list.offsetBytes - LIST_HEAD_BYTES;
  const isSound =
    coveredBytes >= 0 &&
    list.offsetBytes + list.sizeBytes <= layer.sizeBytes &&
    list.sizeBytes === Math.ceil(coveredBytes / list.chunkBytes) * 32;
  if (!isSound || list.sizeBytes > MAX_LIST_BYTES) throw refuse('DataLoss', `its list of chunk digests (${annotation}) cannot be right`);
  const sums = new Uint8Array(list.sizeBytes);
  for (let done = 0; done < sums.length; done += LAST_FETCH_BYTES) {
    const length = Math.min(LAST_FETCH_BYTES, sums.length - done);
    sums.set(await fetchBytes(client, repository, layer, list.offsetBytes + done, length, signal), done);
  }
  if (sha256(sums) !== list.digest) throw refuse('DataLoss', 'its list of chunk digests is not the one that the manifest names');
  return new PartialBlob(layer, list, sums, blobId, file);
}

function fullSpecOf({ digest, sizeBytes }: KnownLayer): LayerSpec {
  return { kind: 'full', blob: { digest, sizeBytes, repositories: [] } };
}

/** A base in use; disposing it removes its staging files. */
export interface OpenBase extends ConvertedBase, Disposable {}

/**
 * Opens converted layers (bottom to top) of a repository as a base. `diffIds` are those of the source layers that they were made from.
 * Throws FailedPrecondition when they are not of this builder's making or have no chunk lists, DataLoss when their bytes are wrong, and
 * the errors of range reads.
 */
export async function openConvertedBase(
  client: RegistryClient,
  repository: Repository,
  layers: readonly KnownLayer[],
  diffIds: readonly Digest[],
  stagingDirectory: string,
  signal: AbortSignal,
): Promise<OpenBase> {
  using stack = new DisposableStack();
  const metadata = new BaseMetadata(client, repository);
  const spec: DeviceSpec = { version: 1, id: 'base', image: 'base', layers: [] };
  for (const layer of layers) spec.layers.push(isIndexLayer(layer) ? await metadata.specOf(layer, signal) : fullSpecOf(layer));
  const byDigest = new Map<string, KnownLayer>(layers.map((layer) => [layer.digest, layer]));
  const blobs: (PartialBlob | RandomAccessFile)[] = [];
  // Equal layers are one blob of the device.
  for (const [i, { digest }] of blobsOf(spec).entries()) {
    const held = metadata.files.get(digest);
    const file = path.join(stagingDirectory, `base-${i}`);
    blobs.push(held ?? stack.use(await openBlob(client, repository, byDigest.get(digest)!, i, file, signal)));
  }
  const fetchMissing = async ({ ranges }: MissingList): Promise<void> => {
    for (const { blobId, offsetBytes, lengthBytes } of ranges) {
      const blob = blobs[blobId]!;
      assert(blob instanceof PartialBlob, 'what lies in memory misses nothing');
      await blob.fetch(client, repository, offsetBytes, lengthBytes, signal);
    }
  };
  const device = createDeviceFile(await openTables(spec, blobs, fetchMissing), blobs, loadCodec());
  const read = (offset: number, length: number): Buffer => {
    const target = Buffer.alloc(length);
    const missing = new MissingList();
    const inside = Math.max(0, Math.min(length, device.sizeBytes - offset));
    if (inside > 0 && !device.readSync(offset, inside, target, 0, missing)) throw new BaseMiss(missing);
    return target;
  };
  for (let round = 0; ; round += 1) {
    signal.throwIfAborted();
    try {
      restoreTree(read);
      break;
    } catch (error) {
      if (!(error instanceof BaseMiss) || round === MAX_ROUNDS) throw error;
      await fetchMissing(error.missing);
    }
  }
  const held = stack.move();
  return { read, diffIds, [Symbol.dispose]: () => held.dispose() };
}

async function openTables(
  spec: DeviceSpec,
  blobs: readonly RandomAccessFile[],
  fetchMissing: (missing: MissingList) => Promise<void>,
): Promise<DeviceTables> {
  const opener = new DeviceOpener(spec, blobs, loadCodec());
  for (let round = 0; round < MAX_ROUNDS; round += 1) {
    const missing = new MissingList();
    const tables = opener.tryOpen(missing);
    if (tables !== undefined) return tables;
    await fetchMissing(missing);
  }
  throw new AppError('DataLoss', {
    op: 'open base',
    subject: spec.layers.at(-1)!.kind,
    what: `bytes are missing after ${MAX_ROUNDS} rounds`,
  });
}
