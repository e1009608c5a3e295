/**
 * A thread that reads a finished blob once and computes its digest and the SHA-256 of each of its chunks.
 */
import { createHash, hash } from 'node:crypto';
import { closeSync, openSync, readSync } from 'node:fs';
import { parentPort, workerData } from 'node:worker_threads';

const READ_BYTES = 1024 * 1024;

export interface DigestRequest {
  path: string;
  chunkBytes: number;
}

export interface DigestResult {
  /** Hexadecimal SHA-256 of the whole file. */
  sha256: string;
  sizeBytes: number;
  /** 32 bytes a chunk, in order. */
  chunks: Uint8Array<ArrayBuffer>;
}

function digestFile({ path, chunkBytes }: DigestRequest): DigestResult {
  const fd = openSync(path, 'r');
  try {
    const whole = createHash('sha256');
    const chunks: Buffer[] = [];
    const buffer = Buffer.allocUnsafe(Math.max(READ_BYTES, chunkBytes));
    let position = 0;
    for (;;) {
      let filled = 0;
      while (filled < buffer.length) {
        const count = readSync(fd, buffer, filled, buffer.length - filled, position + filled);
        if (count === 0) break;
        filled += count;
      }
      if (filled === 0) break;
      whole.update(buffer.subarray(0, filled));
      for (let at = 0; at < filled; at += chunkBytes)
        chunks.push(hash('sha256', buffer.subarray(at, Math.min(filled, at + chunkBytes)), 'buffer'));
      position += filled;
      if (filled < buffer.length) break;
    }
    return { sha256: whole.digest('hex'), sizeBytes: position, chunks: Uint8Array.from(Buffer.concat(chunks)) };
  } finally {
    closeSync(fd);
  }
}

if (parentPort !== null) parentPort.postMessage(digestFile(workerData as DigestRequest));
