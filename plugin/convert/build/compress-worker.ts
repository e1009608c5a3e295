/**
 * A thread that compresses. One message in: raw bytes (whole ZFile blocks; only a file's last block may be short) and room for the
 * result. One message out: the same buffers, the compressed blocks with their CRCs, and the size of each. Buffers travel by transfer.
 */
import assert from 'node:assert';
import { parentPort } from 'node:worker_threads';
import { type Algorithm, compressBound } from '../../image/zfile/codec.ts';
import { BLOCK_CRC_SEED, crc32c } from '../../image/zfile/crc32c.ts';
import { loadCodec } from '../../kernel/codecs.ts';

const CRC_BYTES = 4;

export interface CompressRequest {
  id: number;
  algorithm: Algorithm;
  blockSizeBytes: number;
  raw: Uint8Array<ArrayBuffer>;
  rawBytes: number;
  out: Uint8Array<ArrayBuffer>;
}

export interface CompressResult {
  id: number;
  raw: Uint8Array<ArrayBuffer>;
  out: Uint8Array<ArrayBuffer>;
  outBytes: number;
  /** Size of each block on disk, its CRC included. */
  sizes: Uint32Array<ArrayBuffer>;
}

/** Room that the result of `rawBytes` may need. */
export function compressedRoom(rawBytes: number, blockSizeBytes: number): number {
  return Math.ceil(rawBytes / blockSizeBytes) * (compressBound(blockSizeBytes) + CRC_BYTES);
}

function compress(request: CompressRequest): CompressResult {
  const { id, algorithm, blockSizeBytes, raw, rawBytes, out } = request;
  const codec = loadCodec();
  const view = new DataView(out.buffer, out.byteOffset, out.byteLength);
  const sizes = new Uint32Array(Math.ceil(rawBytes / blockSizeBytes));
  let used = 0;
  for (let i = 0; i < sizes.length; i += 1) {
    const at = i * blockSizeBytes;
    const length = Math.min(blockSizeBytes, rawBytes - at);
    const size = codec.compress(algorithm, raw, at, length, out, used, compressBound(length));
    assert(size > 0, 'compression into a buffer of the bound size cannot fail');
    view.setUint32(used + size, crc32c(BLOCK_CRC_SEED, out, used, size), true);
    sizes[i] = size + CRC_BYTES;
    used += size + CRC_BYTES;
  }
  return { id, raw, out, outBytes: used, sizes };
}

parentPort?.on('message', (request: CompressRequest) => {
  const result = compress(request);
  parentPort!.postMessage(result, [result.raw.buffer, result.out.buffer, result.sizes.buffer]);
});
