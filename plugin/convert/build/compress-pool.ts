/**
 * Compression in worker threads, with a fixed number of buffers: a caller that asks for one waits until a job has given its own back,
 * so memory is bounded whatever the image and whichever side is slower. Ours.
 */
import path from 'node:path';
import { Worker } from 'node:worker_threads';
import { AppError } from '../../base/errors.ts';
import { MIB } from '../../base/units.ts';
import type { Algorithm } from '../../image/zfile/codec.ts';
import { type CompressRequest, type CompressResult, compressedRoom } from './compress-worker.ts';
import { stopWorker } from './stop-worker.ts';

const WORKER = path.join(import.meta.dirname, `compress-worker${path.extname(import.meta.filename)}`);

/** Raw bytes of a job: some milliseconds of work, so that the message costs nothing beside it. A multiple of every block size. */
export const JOB_BYTES = 1 * MIB;
/** Jobs between reader and disk, a thread: one at work, one waiting, one being filled or written. */
const JOBS_PER_THREAD = 4;

export interface Compression {
  algorithm: Algorithm;
  blockSizeBytes: number;
}

/** A pair of buffers on its way through the pool. */
export interface Job {
  raw: Uint8Array<ArrayBuffer>;
  out: Uint8Array<ArrayBuffer>;
}

export class CompressPool {
  private readonly compression: Compression;
  private readonly workers: Worker[] = [];
  private readonly free: Job[] = [];
  private readonly waiting: { resolve: (job: Job) => void; reject: (error: unknown) => void }[] = [];
  private readonly running = new Map<number, { resolve: (result: CompressResult) => void; reject: (error: unknown) => void }>();
  private nextId = 0;
  private failure: unknown;
  private isClosing = false;

  constructor(compression: Compression, threads: number) {
    this.compression = compression;
    for (let i = 0; i < threads; i += 1) {
      const worker = new Worker(WORKER, { execArgv: [], resourceLimits: { maxOldGenerationSizeMb: 64, maxYoungGenerationSizeMb: 8 } });
      worker.on('message', (result: CompressResult) => this.running.get(result.id)?.resolve(result));
      worker.on('error', (error) => this.fail(error));
      worker.on('exit', (code) => {
        if (!this.isClosing) this.fail(new AppError('Internal', { op: 'compress', subject: 'worker', what: `it ended with code ${code}` }));
      });
      this.workers.push(worker);
    }
    const room = compressedRoom(JOB_BYTES, compression.blockSizeBytes);
    for (let i = 0; i < threads * JOBS_PER_THREAD; i += 1) {
      this.free.push({ raw: new Uint8Array(JOB_BYTES), out: new Uint8Array(room) });
    }
  }

  /** A free job at once, or undefined. */
  tryTake(): Job | undefined {
    return this.free.pop();
  }

  /** Waits for a free job. Rejects when a worker has failed. */
  take(): Promise<Job> {
    if (this.failure !== undefined) return Promise.reject(this.failure);
    const job = this.free.pop();
    return job === undefined ? new Promise((resolve, reject) => this.waiting.push({ resolve, reject })) : Promise.resolve(job);
  }

  /** Gives a job's buffers back. */
  release(job: Job): void {
    const waiting = this.waiting.shift();
    if (waiting === undefined) this.free.push(job);
    else waiting.resolve(job);
  }

  /** Compresses the first `rawBytes` of the job; its buffers come back in the result and must be released. */
  run(job: Job, rawBytes: number, content: CompressRequest['content']): Promise<CompressResult> {
    if (this.failure !== undefined) return Promise.reject(this.failure);
    const id = this.nextId++;
    const request: CompressRequest = { id, ...this.compression, ...job, rawBytes, content };
    return new Promise<CompressResult>((resolve, reject) => {
      this.running.set(id, { resolve, reject });
      this.workers[id % this.workers.length]!.postMessage(request, [job.raw.buffer, job.out.buffer]);
    }).finally(() => this.running.delete(id));
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.isClosing = true;
    await Promise.all(this.workers.map(stopWorker));
  }

  private fail(error: unknown): void {
    this.failure ??= error;
    for (const { reject } of this.running.values()) reject(this.failure);
    for (const { reject } of this.waiting.splice(0)) reject(this.failure);
  }
}
