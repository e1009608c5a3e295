/**
 * Checks fetched units against the list of SHA-256 that a layer carries (plugin/image/oci/chunk-list.ts), before they become readable.
 * The list itself is bound to the manifest by its digest.
 */
import { hash } from 'node:crypto';
import { AppError } from '../base/errors.ts';
import { FETCH_UNIT_BYTES, MAX_BLOB_BYTES } from '../base/limits.ts';
import { MIB, SECTOR_BYTES } from '../base/units.ts';
import type { BlobSource } from '../file/device-spec.ts';
import { MissingList } from '../file/file.ts';
import type { BlobHandle } from '../file/store/blob-handle.ts';
import type { ChunkStore } from '../file/store/chunk-store.ts';
import type { FetchScheduler } from './fetch/fetch-scheduler.ts';

const HASH_BYTES = 32;

/** Units are evicted and fetched again at most this often while the list is read. */
const MAX_ROUNDS = 16;

/**
 * All lists in memory: digests of 512 GiB in chunks of 64 KiB. Hostile images may name a list of the largest size for each layer; they
 * are refused before the node's memory is gone.
 */
const MAX_TOTAL_BYTES = 256 * MIB;

interface Known {
  list: Buffer;
  chunkBytes: number;
  /** The chunks cover the blob up to here: the tar header of the list. */
  coveredBytes: number;
}

export class ChunkVerifier {
  /** By blob. The store keeps bytes apart that different lists vouch for (blob-key.ts), so a blob has one list at most. */
  private readonly known = new Map<number, Known>();
  private readonly maxTotalBytes: number;
  /** Of the lists that are known or being fetched. */
  private totalBytes = 0;

  constructor(maxTotalBytes = MAX_TOTAL_BYTES) {
    this.maxTotalBytes = maxTotalBytes;
  }

  /** True when the blob's list approves the unit's bytes, or the blob has none. */
  verifyUnit(blobId: number, unitIndex: number, bytes: Uint8Array): boolean {
    const known = this.known.get(blobId);
    return known === undefined || approves(known, unitIndex, bytes);
  }

  /**
   * Fetches and checks a blob's list, so that everything fetched from then on is checked. Nothing to do without a list, and for a blob that
   * is whole and proven unless it `isDamaged`. Errors:
   * InvalidArgument (a list that cannot belong to the blob), DataLoss (the list or the bytes beside it are not what their digests name),
   * ResourceExhausted (too many lists in use).
   */
  async load(
    handle: BlobHandle,
    parts: { store: ChunkStore; scheduler: FetchScheduler },
    signal: AbortSignal,
    { isDamaged = false } = {},
  ): Promise<void> {
    const { chunkList, digest } = handle.source;
    if (chunkList === undefined || this.known.has(handle.blobId) || (handle.isVerified && !isDamaged)) return;
    const coveredBytes = checkedCover(handle.source, chunkList);
    const what = `lists in use take ${this.totalBytes} of ${this.maxTotalBytes} bytes, and this one ${chunkList.sizeBytes}`;
    if (this.totalBytes + chunkList.sizeBytes > this.maxTotalBytes)
      throw new AppError('ResourceExhausted', { op: 'read chunk list of', subject: digest, what });
    this.totalBytes += chunkList.sizeBytes;
    let isKept = false;
    try {
      isKept = await this.loadCounted(handle, chunkList, coveredBytes, parts, signal);
    } finally {
      if (!isKept) this.totalBytes -= chunkList.sizeBytes;
    }
  }

  /** True when the list is remembered; false when somebody else's call remembered it meanwhile. */
  private async loadCounted(
    handle: BlobHandle,
    chunkList: NonNullable<BlobSource['chunkList']>,
    coveredBytes: number,
    parts: { store: ChunkStore; scheduler: FetchScheduler },
    signal: AbortSignal,
  ): Promise<boolean> {
    const { digest } = handle.source;
    const range = { offsetBytes: chunkList.offsetBytes, lengthBytes: chunkList.sizeBytes };
    const list = await readRange(handle, range, parts.scheduler, signal);
    if (`sha256:${hash('sha256', list, 'hex')}` !== chunkList.digest) {
      await parts.store.drop(handle, range.offsetBytes, range.lengthBytes);
      throw new AppError('DataLoss', { op: 'read chunk list of', subject: digest, what: `its bytes are not ${chunkList.digest}` });
    }
    const known = { list, chunkBytes: chunkList.chunkBytes, coveredBytes };
    await verifyNeighbours(handle, range.offsetBytes, known, parts, signal);
    if (this.known.has(handle.blobId)) return false;
    this.known.set(handle.blobId, known);
    return true;
  }

  /** Forgets a blob that nothing refers to any more. */
  forget(blobId: number): void {
    this.totalBytes -= this.known.get(blobId)?.list.length ?? 0;
    this.known.delete(blobId);
  }
}

/** The unit in which the list begins was fetched before the list was known, and also holds the end of the payload. */
async function verifyNeighbours(
  handle: BlobHandle,
  listOffsetBytes: number,
  known: Known,
  parts: { store: ChunkStore; scheduler: FetchScheduler },
  signal: AbortSignal,
): Promise<void> {
  const unit = Math.floor(listOffsetBytes / FETCH_UNIT_BYTES);
  const offsetBytes = unit * FETCH_UNIT_BYTES;
  const lengthBytes = Math.min(FETCH_UNIT_BYTES, handle.sizeBytes - offsetBytes);
  const bytes = await readRange(handle, { offsetBytes, lengthBytes }, parts.scheduler, signal);
  if (approves(known, unit, bytes)) return;
  await parts.store.drop(handle, offsetBytes, lengthBytes);
  throw new AppError('DataLoss', {
    op: 'check chunk of',
    subject: handle.source.digest,
    what: `unit ${unit} is not what the chunk list says`,
  });
}

function approves(known: Known, unitIndex: number, bytes: Uint8Array): boolean {
  const start = unitIndex * FETCH_UNIT_BYTES;
  for (let at = 0; at < bytes.length && start + at < known.coveredBytes; at += known.chunkBytes) {
    const chunk = bytes.subarray(at, Math.min(at + known.chunkBytes, known.coveredBytes - start));
    const index = (start + at) / known.chunkBytes;
    const expected = known.list.subarray(index * HASH_BYTES, (index + 1) * HASH_BYTES);
    if (!hash('sha256', chunk, 'buffer').equals(expected)) return false;
  }
  return true;
}

/** Where the cover ends, after checking that the list can be this blob's. */
function checkedCover(source: BlobSource, list: NonNullable<BlobSource['chunkList']>): number {
  const refuse = (what: string): AppError => new AppError('InvalidArgument', { op: 'read chunk list of', subject: source.digest, what });
  const { offsetBytes, sizeBytes, chunkBytes } = list;
  const coveredBytes = offsetBytes - SECTOR_BYTES;
  if (FETCH_UNIT_BYTES % chunkBytes !== 0) throw refuse(`chunks of ${chunkBytes} bytes do not divide ${FETCH_UNIT_BYTES}`);
  if (coveredBytes <= 0 || offsetBytes + sizeBytes > Math.min(source.sizeBytes, MAX_BLOB_BYTES))
    throw refuse(`${sizeBytes} bytes at ${offsetBytes} do not lie in its ${source.sizeBytes} bytes`);
  const expected = Math.ceil(coveredBytes / chunkBytes) * HASH_BYTES;
  if (sizeBytes !== expected) throw refuse(`${sizeBytes} bytes of digests for ${coveredBytes} bytes of blob, expected ${expected}`);
  return coveredBytes;
}

async function readRange(
  handle: BlobHandle,
  range: { offsetBytes: number; lengthBytes: number },
  scheduler: FetchScheduler,
  signal: AbortSignal,
): Promise<Buffer> {
  const target = Buffer.allocUnsafeSlow(range.lengthBytes);
  const file = handle.file();
  for (let round = 0; round < MAX_ROUNDS; round += 1) {
    if (file.readSync(range.offsetBytes, range.lengthBytes, target, 0, new MissingList())) return target;
    await scheduler.ensure(handle, [range], 'demand', signal);
  }
  throw new AppError('Unavailable', { op: 'read', subject: handle.source.digest, what: `bytes still missing after ${MAX_ROUNDS} rounds` });
}
