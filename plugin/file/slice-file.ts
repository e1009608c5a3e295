/** A part of a file as a file of its own: the payload of a tar wrapper. */
import assert from 'node:assert';
import type { MissingRanges, RandomAccessFile } from './file.ts';

export class SliceFile implements RandomAccessFile {
  readonly sizeBytes: number;
  private readonly inner: RandomAccessFile;
  private readonly beginBytes: number;

  /** The slice must lie within `inner` (asserted). */
  constructor(inner: RandomAccessFile, offsetBytes: number, sizeBytes: number) {
    assert(offsetBytes >= 0 && sizeBytes >= 0 && offsetBytes + sizeBytes <= inner.sizeBytes, 'slice lies within its file');
    this.inner = inner;
    this.beginBytes = offsetBytes;
    this.sizeBytes = sizeBytes;
  }

  readSync(offsetBytes: number, lengthBytes: number, target: Uint8Array, targetOffset: number, missing: MissingRanges): boolean {
    assert(offsetBytes >= 0 && offsetBytes + lengthBytes <= this.sizeBytes, 'read lies within the slice');
    return this.inner.readSync(this.beginBytes + offsetBytes, lengthBytes, target, targetOffset, missing);
  }
}
