/**
 * Fetched units that could not be put on disk, for reads on the main thread: a bounded least-recently-used list. With it a full disk
 * costs network traffic, not failed reads. Ours.
 */
import assert from 'node:assert/strict';

/** Unit numbers are below 2^28 (16 TiB of 64 KiB), so a blob and a unit make one safe integer. */
const UNIT_SPAN = 2 ** 28;

export class UnitCache {
  private readonly units = new Map<number, Uint8Array>();
  private readonly limitBytes: number;
  private bytes = 0;

  constructor(limitBytes: number) {
    this.limitBytes = limitBytes;
  }

  get usedBytes(): number {
    return this.bytes;
  }

  has(blobId: number, unit: number): boolean {
    return this.bytes > 0 && this.units.has(keyOf(blobId, unit));
  }

  /** The unit's bytes (borrowed: valid until the next put), or undefined. */
  get(blobId: number, unit: number): Uint8Array | undefined {
    if (this.bytes === 0) return undefined;
    const key = keyOf(blobId, unit);
    const found = this.units.get(key);
    if (found === undefined) return undefined;
    this.units.delete(key);
    this.units.set(key, found);
    return found;
  }

  /** Copies the bytes; the oldest units make room. */
  put(blobId: number, unit: number, bytes: Uint8Array): void {
    this.delete(blobId, unit);
    this.units.set(keyOf(blobId, unit), Uint8Array.from(bytes));
    this.bytes += bytes.length;
    while (this.bytes > this.limitBytes && this.units.size > 1) {
      const [oldest, old] = this.units.entries().next().value!;
      this.units.delete(oldest);
      this.bytes -= old.length;
    }
  }

  delete(blobId: number, unit: number): void {
    const key = keyOf(blobId, unit);
    const found = this.units.get(key);
    if (found === undefined) return;
    this.units.delete(key);
    this.bytes -= found.length;
  }

  /** Forgets a blob's units from `firstUnit` up to `endUnit`; costs one pass over the cache (about a thousand entries). */
  deleteRange(blobId: number, firstUnit: number, endUnit: number): void {
    if (this.bytes === 0) return;
    const first = keyOf(blobId, firstUnit);
    const end = first + (endUnit - firstUnit);
    for (const [key, bytes] of this.units) {
      if (key < first || key >= end) continue;
      this.units.delete(key);
      this.bytes -= bytes.length;
    }
  }
}

function keyOf(blobId: number, unit: number): number {
  assert(unit < UNIT_SPAN);
  return blobId * UNIT_SPAN + unit;
}
