/**
 * How a layer descriptor names the list of chunk digests inside its blob. The manifest binds the list by this digest, so every chunk that
 * is fetched lazily can be checked before it is served. Ours; the reference ignores the key.
 */
import { type Digest, parseDigest } from '../../base/digest.ts';
import { AppError } from '../../base/errors.ts';

/** Under the prefix that containerd hands to snapshotters as labels. */
export const CHUNK_LIST_ANNOTATION = 'containerd.io/snapshot/overlaybd-sidecar/chunk-list';

export interface ChunkList {
  /** Of the list's bytes. */
  digest: Digest;
  /** Where the list begins in the layer blob; the chunks it covers end at least 512 bytes before. */
  offsetBytes: number;
  /** 32 bytes a chunk. */
  sizeBytes: number;
  chunkBytes: number;
}

/** `<digest>,<offset>,<size>,<chunk size>` */
export function encodeChunkList(list: ChunkList): string {
  return [list.digest, list.offsetBytes, list.sizeBytes, list.chunkBytes].join(',');
}

/** Reads the annotation's value. Throws InvalidArgument naming `subject`. */
export function parseChunkList(text: string, subject: string): ChunkList {
  const [digest, ...rest] = text.split(',');
  const numbers = rest.map((part) => (/^[0-9]{1,15}$/.test(part) ? Number(part) : Number.NaN));
  const [offsetBytes = Number.NaN, sizeBytes = Number.NaN, chunkBytes = Number.NaN] = numbers;
  const isSound = numbers.length === 3 && numbers.every(Number.isSafeInteger) && chunkBytes >= 4096 && sizeBytes % 32 === 0;
  if (!isSound) {
    const what = 'not a digest, an offset, a size in multiples of 32 and a chunk size from 4096 on, with commas between';
    throw new AppError('InvalidArgument', { op: 'parse chunk list annotation', subject, what });
  }
  return { digest: parseDigest(digest, subject), offsetBytes, sizeBytes, chunkBytes };
}
