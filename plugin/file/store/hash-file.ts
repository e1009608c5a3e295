/** SHA-256 of an open file, in a worker thread of its own. */
import { Worker } from 'node:worker_threads';
import type { Digest } from '../../base/digest.ts';
import { AppError } from '../../base/errors.ts';

/** Sources run as they are in development; a release has compiled files of the same name. */
const WORKER_FILE = new URL(import.meta.url.endsWith('.ts') ? './hash-worker.ts' : './hash-worker.js', import.meta.url);

/**
 * The digest of the first `sizeBytes` of `fd`, which must stay open meanwhile. Ends only with the file or the signal: reading is local,
 * and its speed is the disk's. Rejects with Canceled on abort, Internal when the file cannot be read.
 */
export async function hashFile(fd: number, sizeBytes: number, signal?: AbortSignal): Promise<Digest> {
  const failed = (what: string, cause?: unknown): AppError =>
    new AppError(signal?.aborted ? 'Canceled' : 'Internal', { op: 'hash', subject: `descriptor ${fd}`, what, cause });
  if (signal?.aborted) throw failed('aborted');
  const worker = new Worker(WORKER_FILE, { workerData: { fd, sizeBytes }, execArgv: [] });
  const stop = (): void => {
    void worker.terminate();
  };
  signal?.addEventListener('abort', stop, { once: true });
  try {
    return await new Promise<Digest>((resolve, reject) => {
      let answer: Digest | undefined;
      worker.once('message', ({ hex, bytes }: { hex: string; bytes: number }) => {
        if (bytes === sizeBytes) answer = `sha256:${hex}`;
      });
      worker.once('error', (error) => reject(failed('the file cannot be read', error)));
      worker.once('exit', () => {
        if (answer === undefined) reject(failed(signal?.aborted ? 'aborted' : 'the file ends early'));
        else resolve(answer);
      });
    });
  } finally {
    signal?.removeEventListener('abort', stop);
  }
}
