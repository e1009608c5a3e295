/**
 * Which units of a blob are local: one byte of flags a unit in shared memory, so that the worker threads which answer reads and the
 * main thread which fetches agree without messages. Ours.
 *
 *   buffer:  [ 0 generation | 4 fd | 8 allLocal | … 64 ) [ flags of unit 0 | unit 1 | … ]
 *
 * Rules: PRESENT is set only after the unit's bytes are in the data file, and by the main thread alone. `generation` grows whenever
 * a PRESENT is taken away; a reader that copied bytes while it changed must not use them. `fd` is -1 while the blob has no file.
 */
import assert from 'node:assert/strict';
import { FETCH_UNIT_BYTES, MAX_BLOB_BYTES } from '../../base/limits.ts';

/** The unit's bytes are in the data file. */
export const UNIT_PRESENT = 1;
/** The first reader that hits this unit clears the mark and reports it: continue the read-ahead. */
export const UNIT_MARKED = 2;
/** Some reader has read the unit: tells fetched and used from fetched in vain. */
export const UNIT_ACCESSED = 4;
/** The presence map on disk says so too (main thread only). */
export const UNIT_DURABLE = 8;

const GENERATION = 0;
const FD = 1;
const ALL_LOCAL = 2;
const HEADER_BYTES = 64;

/** How many units a blob of this size has. */
export function unitCountOf(sizeBytes: number): number {
  return Math.ceil(sizeBytes / FETCH_UNIT_BYTES);
}

/** Bytes of shared memory that a blob's flags take. */
export function presenceBytesOf(sizeBytes: number): number {
  return HEADER_BYTES + unitCountOf(sizeBytes);
}

export class Presence {
  readonly buffer: SharedArrayBuffer;
  readonly unitCount: number;
  /** One byte a unit; use the methods for anything but bulk reads. */
  readonly flags: Uint8Array<SharedArrayBuffer>;
  private readonly header: Int32Array<SharedArrayBuffer>;

  /** A view on flags made by {@link Presence.create}, in any thread. */
  constructor(buffer: SharedArrayBuffer) {
    this.buffer = buffer;
    this.header = new Int32Array(buffer, 0, HEADER_BYTES / 4);
    this.flags = new Uint8Array(buffer, HEADER_BYTES);
    this.unitCount = this.flags.length;
  }

  /** Fresh flags, nothing present, no file. */
  static create(sizeBytes: number): Presence {
    assert(Number.isSafeInteger(sizeBytes) && sizeBytes >= 0 && sizeBytes <= MAX_BLOB_BYTES);
    const presence = new Presence(new SharedArrayBuffer(presenceBytesOf(sizeBytes)));
    presence.fd = -1;
    return presence;
  }

  get fd(): number {
    return Atomics.load(this.header, FD);
  }

  set fd(fd: number) {
    Atomics.store(this.header, FD, fd);
  }

  get generation(): number {
    return Atomics.load(this.header, GENERATION);
  }

  /** True when every byte is local for good (a complete, verified blob or a local file): readers need not look at units. */
  get isAllLocal(): boolean {
    return Atomics.load(this.header, ALL_LOCAL) === 1;
  }

  set isAllLocal(value: boolean) {
    Atomics.store(this.header, ALL_LOCAL, value ? 1 : 0);
  }

  has(unit: number): boolean {
    return (Atomics.load(this.flags, unit) & UNIT_PRESENT) !== 0;
  }

  get(unit: number): number {
    return Atomics.load(this.flags, unit);
  }

  set(unit: number, mask: number): void {
    Atomics.or(this.flags, unit, mask);
  }

  /** True when the unit can be read from the file. */
  isReadable(unit: number): boolean {
    return this.fd >= 0 && (this.isAllLocal || this.has(unit));
  }

  /** How many units have the flag: for statistics, since others may set flags meanwhile. Four units a step: a blob may have 2^28. */
  count(flag: number): number {
    const wordCount = this.unitCount >>> 2;
    const words = new Uint32Array(this.buffer, HEADER_BYTES, wordCount);
    const mask = Math.imul(flag, 0x01010101);
    let found = 0;
    for (let at = 0; at < wordCount; at += 1) {
      for (let left = words[at]! & mask; left !== 0; left &= left - 1) found += 1;
    }
    for (let unit = wordCount * 4; unit < this.unitCount; unit += 1) if ((this.flags[unit]! & flag) !== 0) found += 1;
    return found;
  }

  /** Clears bits and returns what was there before. */
  clear(unit: number, mask: number): number {
    return Atomics.and(this.flags, unit, ~mask & 0xff);
  }

  /** Takes the file away: every reader misses from now on, whatever the flags say. */
  detach(): void {
    this.fd = -1;
    this.isAllLocal = false;
    Atomics.add(this.header, GENERATION, 1);
  }

  /** Takes units away; readers that are copying them notice by the generation. */
  forget(firstUnit: number, endUnit: number): void {
    this.isAllLocal = false;
    for (let unit = firstUnit; unit < endUnit; unit += 1) this.clear(unit, UNIT_PRESENT | UNIT_MARKED);
    Atomics.add(this.header, GENERATION, 1);
  }
}
