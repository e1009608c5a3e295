/**
 * A thread that compresses. One message in: raw bytes that begin at a ZFile block, and room for the result. One message out: the same
 * buffers, the compressed blocks with their CRCs, and the size of each. Buffers travel by transfer.
 *
 * No block with its CRC may pass 64 KiB: the reference cannot read larger ones back, though it writes them (overlaybd-formats.md 2.4).
 * A block of 64 KiB that does not compress is therefore made from 60 KiB of data and 4 KiB of zeros, which the layer's index skips.
 */
import assert from 'node:assert';
import { parentPort } from 'node:worker_threads';
import { KIB } from '../../base/units.ts';
import { type Algorithm, compressBound } from '../../image/zfile/codec.ts';
import { BLOCK_CRC_SEED, crc32c } from '../../image/zfile/crc32c.ts';
import { loadCodec } from '../../kernel/codecs.ts';
import { STOP } from './stop-worker.ts';

const CRC_BYTES = 4;
const MAX_ENTRY_BYTES = 64 * KIB;
/** What is left out of a block that does not compress. */
export const FILLER_BYTES = 4 * KIB;

export interface CompressRequest {
  id: number;
  algorithm: Algorithm;
  blockSizeBytes: number;
  raw: Uint8Array<ArrayBuffer>;
  rawBytes: number;
  out: Uint8Array<ArrayBuffer>;
  /** `skippable`: filler may be put in, and the last block is filled up. `exact`: what goes in comes out; it must compress. */
  content: 'skippable' | 'exact';
}

export interface CompressResult {
  id: number;
  raw: Uint8Array<ArrayBuffer>;
  out: Uint8Array<ArrayBuffer>;
  outBytes: number;
  /** Size of each block on disk, its CRC included. */
  sizes: Uint32Array<ArrayBuffer>;
  /** Positions in the raw bytes before which {@link FILLER_BYTES} were put in, ascending. */
  fillers: number[];
}

/** Room that the result of `rawBytes` may need. */
export function compressedRoom(rawBytes: number, blockSizeBytes: number): number {
  const leastPayload = mayOverflow(blockSizeBytes) ? blockSizeBytes - FILLER_BYTES : blockSizeBytes;
  return Math.ceil(rawBytes / leastPayload) * (compressBound(blockSizeBytes) + CRC_BYTES);
}

function mayOverflow(blockSizeBytes: number): boolean {
  return compressBound(blockSizeBytes) + CRC_BYTES > MAX_ENTRY_BYTES;
}

class JobCompressor {
  private readonly request: CompressRequest;
  private readonly codec = loadCodec();
  private readonly view: DataView;
  private used = 0;

  constructor(request: CompressRequest) {
    this.request = request;
    this.view = new DataView(request.out.buffer, request.out.byteOffset, request.out.byteLength);
  }

  run(): CompressResult {
    const { id, blockSizeBytes, raw, rawBytes, out, content } = this.request;
    const sizes: number[] = [];
    const fillers: number[] = [];
    for (let at = 0; at < rawBytes; ) {
      let length = Math.min(blockSizeBytes, rawBytes - at);
      let size = length < blockSizeBytes && content === 'skippable' ? this.filledUp(at, length) : this.block(raw, at, length);
      if (size > MAX_ENTRY_BYTES) {
        assert(content === 'skippable' && length === blockSizeBytes, 'what cannot be filled up compresses');
        length -= FILLER_BYTES;
        size = this.filledUp(at, length);
        assert(size <= MAX_ENTRY_BYTES);
        fillers.push(at + length);
      }
      sizes.push(size);
      this.used += size;
      at += length;
    }
    return { id, raw, out, outBytes: this.used, sizes: Uint32Array.from(sizes), fillers };
  }

  /** Compresses `length` bytes and zeros up to a whole block. */
  private filledUp(at: number, length: number): number {
    const block = new Uint8Array(this.request.blockSizeBytes);
    block.set(this.request.raw.subarray(at, at + length));
    return this.block(block, 0, block.length);
  }

  private block(source: Uint8Array, at: number, length: number): number {
    const { algorithm, out } = this.request;
    const size = this.codec.compress(algorithm, source, at, length, out, this.used, compressBound(length));
    assert(size > 0, 'compression into a buffer of the bound size cannot fail');
    this.view.setUint32(this.used + size, crc32c(BLOCK_CRC_SEED, out, this.used, size), true);
    return size + CRC_BYTES;
  }
}

parentPort?.on('message', (request: CompressRequest | typeof STOP) => {
  if (request === STOP) {
    parentPort!.close();
    return;
  }
  const result = new JobCompressor(request).run();
  parentPort!.postMessage(result, [result.raw.buffer, result.out.buffer, result.sizes.buffer]);
});
