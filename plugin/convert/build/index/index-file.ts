/** The staging files of a layer's index: `gzip.meta`, written as windows come, and the list of chunk digests. Ours. */
import { closeSync, openSync, writeFileSync } from 'node:fs';
import { GZIP_INDEX_HEADER_BYTES } from '../../../image/gzip/gzip-index.ts';
import type { GzipEntry, GzipIndexWriter } from '../../../image/gzip/gzip-index-writer.ts';
import { encodeChunkDigestsHeader, TARGET_DIGEST_BYTES } from '../../../image/turbo/chunk-digests.ts';
import { stagingError, writeFully } from '../spool.ts';

export class IndexFileWriter {
  private readonly path: string;
  private readonly index: GzipIndexWriter;
  private fd: number | undefined;
  private endBytes = GZIP_INDEX_HEADER_BYTES;
  /** Entries whose windows are still being compressed. */
  private readonly pending: GzipEntry[] = [];
  digestsBytes = 0;

  constructor(path: string, index: GzipIndexWriter) {
    this.path = path;
    this.index = index;
  }

  /** An entry; its window comes later, in the same order. */
  addEntry(entry: GzipEntry): void {
    this.pending.push(entry);
  }

  addWindow(window: Uint8Array): void {
    this.fd ??= openSync(this.path, 'wx', 0o600);
    this.index.add(this.pending.shift()!, window.length);
    writeFully(this.fd, window, this.endBytes, this.path);
    this.endBytes += window.length;
  }

  /** Completes `gzip.meta`; returns its size. */
  finish(sizes: { gzipBytes: number; plainBytes: number }): number {
    const { header, table } = this.index.finish(sizes);
    writeFully(this.fd!, table, this.endBytes, this.path);
    writeFully(this.fd!, header, 0, this.path);
    this.close();
    return this.endBytes + table.length;
  }

  /** Writes the list of digests of `plainBytes` of data. */
  writeDigests(path: string, digests: Uint8Array, plainBytes: number): void {
    const bytes = Buffer.concat([encodeChunkDigestsHeader(plainBytes, digests.length / TARGET_DIGEST_BYTES), digests]);
    try {
      writeFileSync(path, bytes, { flag: 'wx', mode: 0o600 });
    } catch (cause) {
      throw stagingError(cause, path);
    }
    this.digestsBytes = bytes.length;
  }

  [Symbol.dispose](): void {
    this.close();
  }

  private close(): void {
    if (this.fd !== undefined) closeSync(this.fd);
    this.fd = undefined;
  }
}
