/**
 * The file contract of the data path. Everything a device is made of (layer blob, tar payload, ZFile, LSMT stack) is a file around a
 * file: a read either completes at once from local bytes, or says which bytes of which blob must be fetched first. No file waits.
 *
 *   device.readSync ──► stack ──► zfile ──► payload ──► blob ──► local?  yes: copied, true
 *                                                                no:  missing.add(blob, offset, length), false
 *
 * A caller that gets `false` fetches what `missing` lists and calls again. The same call may be repeated any number of times; nothing
 * is written but the target buffer, whose content is undefined after `false`.
 */

/** Collects the ranges of blobs that a read needs and that are not local. */
export interface MissingRanges {
  /** `blobId` as given to the blob's file; the range is within the blob's size. */
  add(blobId: number, offsetBytes: number, lengthBytes: number): void;

  /**
   * Optional: a read that HIT has reached the marked unit of a read-ahead window (told once a mark). Whoever collects hints passes
   * them to the fetch scheduler, which then continues the stream before the reader runs dry. Wrappers need not know of it.
   */
  readAhead?(blobId: number, offsetBytes: number): void;
}

export interface RandomAccessFile {
  readonly sizeBytes: number;

  /**
   * Copies `lengthBytes` at `offsetBytes` into `target` at `targetOffset`.
   * The range must lie within `sizeBytes` (asserted). Returns false when bytes are missing, after adding ALL ranges that this read
   * is known to need (so that one round of fetching is usually enough).
   * Throws AppError DataLoss when local bytes are corrupt (bad checksum, impossible structure), with `details.blobId` and
   * `details.offset` of the stored range, so that the store can drop and fetch it again.
   */
  readSync(offsetBytes: number, lengthBytes: number, target: Uint8Array, targetOffset: number, missing: MissingRanges): boolean;
}

/** A list that implements {@link MissingRanges}; merges nothing, keeps order. */
export class MissingList implements MissingRanges {
  readonly ranges: { blobId: number; offsetBytes: number; lengthBytes: number }[] = [];

  add(blobId: number, offsetBytes: number, lengthBytes: number): void {
    this.ranges.push({ blobId, offsetBytes, lengthBytes });
  }
}

/** A file over bytes in memory; never misses. */
export class MemoryFile implements RandomAccessFile {
  readonly sizeBytes: number;
  private readonly bytes: Uint8Array;

  constructor(bytes: Uint8Array) {
    this.bytes = bytes;
    this.sizeBytes = bytes.length;
  }

  readSync(offsetBytes: number, lengthBytes: number, target: Uint8Array, targetOffset: number): boolean {
    target.set(this.bytes.subarray(offsetBytes, offsetBytes + lengthBytes), targetOffset);
    return true;
  }
}
