/**
 * A thread that seals a finished blob: reads it once, appends the list of SHA-256 of its chunks as a second entry of the tar, and
 * returns the digest of everything. The reference reads the first entry only, so the list is invisible to it; lying in the same blob it
 * travels wherever the layer goes.
 *
 *   tar head │ payload │ zeros to 512 ║ tar header "overlaybd.chunks" │ 32 bytes a chunk │ zeros to 512 │ 1024 zeros
 *   └──────────── covered ────────────┘
 */
import { createHash, hash } from 'node:crypto';
import { closeSync, fstatSync, openSync } from 'node:fs';
import { parentPort, workerData } from 'node:worker_threads';
import { AppError, describeError } from '../../base/errors.ts';
import { MIB } from '../../base/units.ts';
import { encodePlainHead, encodeTail } from '../../image/overlaybd-tar/wrapper.ts';
import { readFully, writeFully } from './spool.ts';

const DIGEST_BYTES = 32;
const LIST_NAME = 'overlaybd.chunks';

export interface SealRequest {
  path: string;
  chunkBytes: number;
}

export interface SealResult {
  /** Hexadecimal SHA-256 of the whole file. */
  sha256: string;
  sizeBytes: number;
  list: { sha256: string; offsetBytes: number; sizeBytes: number };
}

/** Errors of a thread lose their class on the way out, so they go as data (AppError.toJSON). */
export type SealAnswer = { result: SealResult } | { error: unknown };

function sealFile({ path, chunkBytes }: SealRequest): SealResult {
  const fd = openSync(path, 'r+');
  try {
    const whole = createHash('sha256');
    const coveredBytes = fstatSync(fd).size;
    const list = Buffer.alloc(Math.ceil(coveredBytes / chunkBytes) * DIGEST_BYTES);
    // A whole number of chunks, so that none is cut.
    const buffer = Buffer.allocUnsafe(Math.ceil(MIB / chunkBytes) * chunkBytes);
    for (let position = 0; position < coveredBytes; position += buffer.length) {
      const bytes = buffer.subarray(0, Math.min(buffer.length, coveredBytes - position));
      readFully(fd, bytes, position);
      whole.update(bytes);
      for (let at = 0; at < bytes.length; at += chunkBytes) {
        hash('sha256', bytes.subarray(at, at + chunkBytes), 'buffer').copy(list, ((position + at) / chunkBytes) * DIGEST_BYTES);
      }
    }
    const entry = Buffer.concat([encodePlainHead(list.length, LIST_NAME), list, encodeTail(list.length)]);
    writeFully(fd, entry, coveredBytes, path);
    return {
      sha256: whole.update(entry).digest('hex'),
      sizeBytes: coveredBytes + entry.length,
      list: {
        sha256: hash('sha256', list, 'hex'),
        offsetBytes: coveredBytes + entry.length - list.length - encodeTail(list.length).length,
        sizeBytes: list.length,
      },
    };
  } finally {
    closeSync(fd);
  }
}

function answer(request: SealRequest): SealAnswer {
  try {
    return { result: sealFile(request) };
  } catch (error) {
    return { error: error instanceof AppError ? error.toJSON() : { what: describeError(error) } };
  }
}

if (parentPort !== null) parentPort.postMessage(answer(workerData as SealRequest));
