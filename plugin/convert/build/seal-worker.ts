/**
 * A thread that seals a finished blob: reads it once, appends the list of SHA-256 of its chunks as a second entry of the tar, and
 * returns the digest of everything. The reference reads the first entry only, so the list is invisible to it; lying in the same blob it
 * travels wherever the layer goes.
 *
 *   tar head │ payload │ zeros to 512 ║ tar header "overlaybd.chunks" │ 32 bytes a chunk │ zeros to 512 │ 1024 zeros
 *   └──────────── covered ────────────┘
 */
import { createHash, hash } from 'node:crypto';
import { closeSync, openSync, readSync } from 'node:fs';
import { parentPort, workerData } from 'node:worker_threads';
import { AppError, describeError } from '../../base/errors.ts';
import { MIB } from '../../base/units.ts';
import { encodePlainHead, encodeTail } from '../../image/overlaybd-tar/wrapper.ts';
import { writeFully } from './spool.ts';

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
    const chunks: Buffer[] = [];
    // A whole number of chunks, so that none is cut.
    const buffer = Buffer.allocUnsafe(Math.ceil(MIB / chunkBytes) * chunkBytes);
    let position = 0;
    for (let filled = buffer.length; filled === buffer.length; position += filled) {
      filled = 0;
      for (let count = -1; count !== 0 && filled < buffer.length; filled += count) {
        count = readSync(fd, buffer, filled, buffer.length - filled, position + filled);
      }
      const bytes = buffer.subarray(0, filled);
      whole.update(bytes);
      for (let at = 0; at < filled; at += chunkBytes) chunks.push(hash('sha256', bytes.subarray(at, at + chunkBytes), 'buffer'));
    }
    const list = Buffer.concat(chunks);
    const entry = Buffer.concat([encodePlainHead(list.length, LIST_NAME), list, encodeTail(list.length)]);
    writeFully(fd, entry, position, path);
    return {
      sha256: whole.update(entry).digest('hex'),
      sizeBytes: position + entry.length,
      list: {
        sha256: hash('sha256', list, 'hex'),
        offsetBytes: position + entry.length - list.length - encodeTail(list.length).length,
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
