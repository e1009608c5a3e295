/**
 * What is computed over the decompressed bytes of a layer beside the tar itself: its SHA-256 (the diffID), gzip's CRC-32, the SHA-256 of
 * each chunk, and the windows of the index. It is half of the work of reading a layer. Ours.
 */
import { createHash, type Hash, hash } from 'node:crypto';
import { crc32 } from 'node:zlib';
import { GZIP_WINDOW_BYTES } from '../../../image/gzip/gzip-index.ts';
import { packWindow } from '../../../image/gzip/gzip-index-writer.ts';
import { type EntryStart, WindowThinner } from '../../../image/gzip/sparse-window.ts';
import { TARGET_CHUNK_BYTES, TARGET_DIGEST_BYTES } from '../../../image/turbo/chunk-digests.ts';
import { LibraryInflater } from '../../../kernel/inflate.ts';

export interface PlainSums {
  /** Hexadecimal. */
  sha256: string;
  crc32: number;
  digests: Uint8Array;
}

/** The window of an entry, and what tells which of its bytes are needed. */
export interface WindowRequest {
  window: Uint8Array;
  start: EntryStart;
}

/** Bytes go through all sums while the processor's cache holds them. */
const STEP_BYTES = TARGET_CHUNK_BYTES;

export class PlainHasher {
  private whole: Hash = createHash('sha256');
  private crc = 0;
  private digests = new Uint8Array(1024 * TARGET_DIGEST_BYTES);
  private count = 0;
  /** The chunk that is not complete yet. */
  private readonly partial = Buffer.alloc(TARGET_CHUNK_BYTES);
  private partialBytes = 0;

  /** `memory`: the slot. */
  update(memory: Uint8Array, length: number, spans: readonly number[]): void {
    const bytes = memory.subarray(GZIP_WINDOW_BYTES, GZIP_WINDOW_BYTES + length);
    let from = 0;
    for (const at of spans) {
      this.sum(bytes.subarray(from, at));
      this.endChunk();
      from = at;
    }
    this.sum(bytes.subarray(from));
  }

  private sum(bytes: Uint8Array): void {
    for (let at = 0; at < bytes.length; ) {
      const step = bytes.subarray(at, at + STEP_BYTES - (this.partialBytes % STEP_BYTES));
      this.whole.update(step);
      this.crc = crc32(step, this.crc);
      this.chunks(step);
      at += step.length;
    }
  }

  /** The sums of one layer; afterwards the next one may begin. */
  finish(): PlainSums {
    this.endChunk();
    const sums = { sha256: this.whole.digest('hex'), crc32: this.crc, digests: this.digests.slice(0, this.count * TARGET_DIGEST_BYTES) };
    this.whole = createHash('sha256');
    this.crc = 0;
    this.count = 0;
    return sums;
  }

  private chunks(bytes: Uint8Array): void {
    for (let at = 0; at < bytes.length; ) {
      const take = Math.min(TARGET_CHUNK_BYTES - this.partialBytes, bytes.length - at);
      if (take === TARGET_CHUNK_BYTES) this.add(bytes.subarray(at, at + take));
      else {
        this.partial.set(bytes.subarray(at, at + take), this.partialBytes);
        this.partialBytes += take;
        if (this.partialBytes === TARGET_CHUNK_BYTES) this.endChunk();
      }
      at += take;
    }
  }

  private endChunk(): void {
    if (this.partialBytes > 0) this.add(this.partial.subarray(0, this.partialBytes));
    this.partialBytes = 0;
  }

  private add(chunk: Uint8Array): void {
    const at = this.count * TARGET_DIGEST_BYTES;
    if (at === this.digests.length) {
      const larger = new Uint8Array(this.digests.length * 2);
      larger.set(this.digests);
      this.digests = larger;
    }
    this.digests.set(hash('sha256', chunk, 'buffer'), at);
    this.count += 1;
  }
}

/** Thins and packs windows. */
export class WindowPacker {
  private readonly thinner = new WindowThinner(new LibraryInflater());

  /** The window as the index stores it. Changes the one that is given. */
  pack({ window, start }: WindowRequest): Uint8Array {
    this.thinner.thin(window, start);
    return packWindow(window);
  }
}
