/**
 * Writes the small blob of an index-only layer: a gzip-compressed tar of metadata, marker, gzip index and chunk digests. Reproducible: the
 * tar has no times and no owners, the gzip header neither. Format: overlaybd-formats.md 5.1; plugin/image/turbo/FORMAT.md.
 */
import { createHash } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { open } from 'node:fs/promises';
import path from 'node:path';
import { Readable } from 'node:stream';
import { createGzip } from 'node:zlib';
import type { Digest } from '../../../base/digest.ts';
import { AppError } from '../../../base/errors.ts';
import { KIB, roundUp, SECTOR_BYTES } from '../../../base/units.ts';
import { encodePlainHead } from '../../../image/overlaybd-tar/wrapper.ts';
import { MAX_TURBO_BLOB_BYTES, MAX_TURBO_TAR_BYTES } from '../../../image/turbo/turbo-layer.ts';
import { stagingError } from '../spool.ts';

const MODE = 0o644;
const END_BYTES = 2 * SECTOR_BYTES;
const STEP_BYTES = 256 * KIB;

/** A file of the tar; without a path it is empty. */
export interface BlobEntry {
  name: string;
  sizeBytes: number;
  path?: string;
}

/** Writes the blob; rejects with ResourceExhausted when the disk is full or readers would not take it. The caller removes what is left after a failure. */
export async function writeTurboBlob(
  target: string,
  entries: readonly BlobEntry[],
  signal: AbortSignal,
): Promise<{ digest: Digest; diffId: Digest; sizeBytes: number }> {
  const tar = createHash('sha256');
  const blob = createHash('sha256');
  let sizeBytes = 0;
  let tarBytes = 0;
  const plain = async function* (): AsyncGenerator<Uint8Array> {
    for await (const bytes of tarOf(entries)) {
      signal.throwIfAborted();
      tar.update(bytes);
      tarBytes += bytes.length;
      yield bytes;
    }
  };
  const file = await open(target, 'wx', 0o600);
  try {
    const gzip = createGzip({ chunkSize: STEP_BYTES });
    const input = Readable.from(plain(), { objectMode: false, highWaterMark: STEP_BYTES });
    input.once('error', (error) => gzip.destroy(error));
    for await (const bytes of input.pipe(gzip) as AsyncIterable<Buffer>) {
      blob.update(bytes);
      sizeBytes += bytes.length;
      for (let done = 0; done < bytes.length; ) done += (await file.write(bytes, done)).bytesWritten;
    }
  } catch (cause) {
    throw stagingError(cause, target);
  } finally {
    await file.close();
  }
  if (sizeBytes > MAX_TURBO_BLOB_BYTES || tarBytes > MAX_TURBO_TAR_BYTES) {
    const what = `it has ${sizeBytes} bytes (${tarBytes} uncompressed), readers take ${MAX_TURBO_BLOB_BYTES} (${MAX_TURBO_TAR_BYTES}); convert the image in full`;
    throw new AppError('ResourceExhausted', { op: 'write index', subject: path.basename(target), what });
  }
  return { digest: `sha256:${blob.digest('hex')}`, diffId: `sha256:${tar.digest('hex')}`, sizeBytes };
}

async function* tarOf(entries: readonly BlobEntry[]): AsyncGenerator<Uint8Array> {
  for (const { name, sizeBytes, path } of entries) {
    yield encodePlainHead(sizeBytes, name, MODE);
    if (path !== undefined) yield* createReadStream(path, { highWaterMark: STEP_BYTES }) as AsyncIterable<Uint8Array>;
    const padding = roundUp(sizeBytes, SECTOR_BYTES) - sizeBytes;
    if (padding > 0) yield new Uint8Array(padding);
  }
  yield new Uint8Array(END_BYTES);
}
