/**
 * Buffers for fetched bytes, used again: a fresh 64 KiB for each miss makes the collector run a hundred times a second, which took a
 * third of the main thread at 2,500 misses/s. Ours.
 */
import { FETCH_STREAM_BYTES, FETCH_UNIT_BYTES } from '../../base/limits.ts';

/** Kept of each size: 6 MiB in all, what the fetches of some 10 ms need. */
const KEPT = new Map([
  [FETCH_UNIT_BYTES, 64],
  [FETCH_STREAM_BYTES, 2],
]);

export class BufferPool {
  private readonly free = new Map<number, ArrayBuffer[]>([...KEPT.keys()].map((size) => [size, []]));

  /** A buffer of just this length, with any content. */
  take(lengthBytes: number): Uint8Array<ArrayBuffer> {
    return new Uint8Array(this.free.get(lengthBytes)?.pop() ?? (Buffer.allocUnsafeSlow(lengthBytes).buffer as ArrayBuffer));
  }

  /** Takes a buffer back that nobody reads or writes any more; one of an odd size is left to the collector. */
  give(bytes: Uint8Array<ArrayBuffer>): void {
    const free = this.free.get(bytes.length);
    if (free !== undefined && bytes.buffer.byteLength === bytes.length && free.length < KEPT.get(bytes.length)!) free.push(bytes.buffer);
  }
}
