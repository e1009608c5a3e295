/**
 * A stored blob as a file: answers from the sparse data file when all touched units are present, else lists every missing one. Works
 * in any thread; on the main thread it also sees the units that only memory holds. Never waits, never fetches.
 */
import assert from 'node:assert/strict';
import fs from 'node:fs';
import { AppError } from '../../base/errors.ts';
import { FETCH_UNIT_BYTES } from '../../base/limits.ts';
import type { MissingRanges, RandomAccessFile } from '../file.ts';
import { Presence, UNIT_ACCESSED, UNIT_MARKED } from './presence.ts';
import type { UnitCache } from './unit-cache.ts';

/**
 * What a worker thread needs to read a blob; survives postMessage. The descriptor lies inside `presence`. Valid until the handle it
 * came from is released: release only after every thread has dropped its files, or a reused descriptor would answer.
 */
export interface SharedBlob {
  blobId: number;
  /** For errors and logs. */
  digest: string;
  sizeBytes: number;
  presence: SharedArrayBuffer;
}

export class BlobFile implements RandomAccessFile {
  readonly sizeBytes: number;
  readonly blobId: number;
  private readonly digest: string;
  private readonly presence: Presence;
  private readonly memory: UnitCache | undefined;

  /** `memory` is the store's cache of units that have no place on disk; main thread only. */
  constructor(blob: SharedBlob, memory?: UnitCache) {
    this.sizeBytes = blob.sizeBytes;
    this.blobId = blob.blobId;
    this.digest = blob.digest;
    this.presence = new Presence(blob.presence);
    this.memory = memory;
  }

  readSync(offsetBytes: number, lengthBytes: number, target: Uint8Array, targetOffset: number, missing: MissingRanges): boolean {
    assert(offsetBytes >= 0 && lengthBytes >= 0 && offsetBytes + lengthBytes <= this.sizeBytes);
    if (lengthBytes === 0) return true;
    const { presence } = this;
    for (;;) {
      const generation = presence.generation;
      const fd = presence.fd;
      if (fd < 0 || !this.isLocal(offsetBytes, lengthBytes, missing)) break;
      this.pread(fd, offsetBytes, lengthBytes, target, targetOffset);
      // Units that were taken away while we copied may have changed under us: look again.
      if (presence.generation === generation) return true;
    }
    if (this.memory !== undefined && this.readMixed(offsetBytes, lengthBytes, target, targetOffset)) return true;
    this.listMissing(offsetBytes, lengthBytes, missing);
    return false;
  }

  /** True when all touched units are in the data file; then they count as accessed and their read-ahead marks are reported. */
  private isLocal(offsetBytes: number, lengthBytes: number, missing: MissingRanges): boolean {
    const { presence } = this;
    if (presence.isAllLocal) return true;
    const first = Math.floor(offsetBytes / FETCH_UNIT_BYTES);
    const last = Math.floor((offsetBytes + lengthBytes - 1) / FETCH_UNIT_BYTES);
    for (let unit = first; unit <= last; unit += 1) if (!presence.has(unit)) return false;
    for (let unit = first; unit <= last; unit += 1) this.touch(unit, missing);
    return true;
  }

  private touch(unit: number, missing: MissingRanges): void {
    const flags = this.presence.get(unit);
    if ((flags & UNIT_ACCESSED) === 0) this.presence.set(unit, UNIT_ACCESSED);
    if ((flags & UNIT_MARKED) === 0 || missing.readAhead === undefined) return;
    const before = this.presence.clear(unit, UNIT_MARKED);
    if ((before & UNIT_MARKED) !== 0) missing.readAhead(this.blobId, unit * FETCH_UNIT_BYTES);
  }

  private pread(fd: number, offsetBytes: number, lengthBytes: number, target: Uint8Array, targetOffset: number): void {
    let done = 0;
    while (done < lengthBytes) {
      const count = this.preadOnce(fd, offsetBytes + done, lengthBytes - done, target, targetOffset + done);
      if (count === 0) throw this.damaged(offsetBytes + done, 'the stored data ends early', undefined);
      done += count;
    }
  }

  private preadOnce(fd: number, offsetBytes: number, lengthBytes: number, target: Uint8Array, targetOffset: number): number {
    try {
      return fs.readSync(fd, target, targetOffset, lengthBytes, offsetBytes);
    } catch (cause) {
      throw this.damaged(offsetBytes, 'the disk does not give the bytes back', cause);
    }
  }

  private damaged(offsetBytes: number, what: string, cause: unknown): AppError {
    const details = { blobId: this.blobId, offset: offsetBytes };
    return new AppError('DataLoss', { op: 'read blob', subject: this.digest, what: `${what} at offset ${offsetBytes}`, details, cause });
  }

  /** Unit by unit from memory or disk. Main thread only, so nothing is taken away meanwhile. */
  private readMixed(offsetBytes: number, lengthBytes: number, target: Uint8Array, targetOffset: number): boolean {
    let at = offsetBytes;
    const end = offsetBytes + lengthBytes;
    while (at < end) {
      const unit = Math.floor(at / FETCH_UNIT_BYTES);
      const pieceEnd = Math.min(end, (unit + 1) * FETCH_UNIT_BYTES);
      const to = targetOffset + at - offsetBytes;
      if (this.presence.isReadable(unit)) {
        this.pread(this.presence.fd, at, pieceEnd - at, target, to);
      } else {
        const bytes = this.memory?.get(this.blobId, unit);
        if (bytes === undefined) return false;
        target.set(bytes.subarray(at - unit * FETCH_UNIT_BYTES, pieceEnd - unit * FETCH_UNIT_BYTES), to);
      }
      this.presence.set(unit, UNIT_ACCESSED);
      at = pieceEnd;
    }
    return true;
  }

  /** All missing units of the range, adjacent ones as one range, cut at the blob's end. */
  private listMissing(offsetBytes: number, lengthBytes: number, missing: MissingRanges): void {
    const first = Math.floor(offsetBytes / FETCH_UNIT_BYTES);
    const end = Math.floor((offsetBytes + lengthBytes - 1) / FETCH_UNIT_BYTES) + 1;
    let runStart = -1;
    let found = false;
    for (let unit = first; unit <= end; unit += 1) {
      const isMissing = unit < end && !this.isReadable(unit);
      if (isMissing && runStart < 0) runStart = unit;
      if (isMissing || runStart < 0) continue;
      this.addMissing(runStart, unit, missing);
      found = true;
      runStart = -1;
    }
    // Fetched between the two looks: name the range once more, the fetcher finds it local and the read is repeated.
    if (!found) this.addMissing(first, end, missing);
  }

  private isReadable(unit: number): boolean {
    return this.presence.isReadable(unit) || (this.memory?.has(this.blobId, unit) ?? false);
  }

  private addMissing(firstUnit: number, endUnit: number, missing: MissingRanges): void {
    const start = firstUnit * FETCH_UNIT_BYTES;
    missing.add(this.blobId, start, Math.min(endUnit * FETCH_UNIT_BYTES, this.sizeBytes) - start);
  }
}
