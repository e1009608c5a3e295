/** The threads that inflate spans, as the main thread sees them. They start when the first gzip layer is read, and stay. Ours. */
import path from 'node:path';
import { Worker } from 'node:worker_threads';
import { AppError } from '../../base/errors.ts';
import { type InflateAnswer, type InflateRequest, STOP } from './inflate-messages.ts';

const WORKER = path.join(import.meta.dirname, `inflate-worker${path.extname(import.meta.filename)}`);

interface Thread {
  worker: Worker;
  waiting: Map<number, (answer: InflateAnswer) => void>;
}

export class InflateThreads {
  private readonly count: number;
  private readonly onFailure: (error: Error) => void;
  private readonly threads: Thread[] = [];
  private nextId = 1;

  /** `onFailure`: a thread died of a broken invariant; the process should end and be replaced, as nobody answers its readers. */
  constructor(options: { threads: number; onFailure: (error: Error) => void }) {
    this.count = options.threads;
    this.onFailure = options.onFailure;
  }

  /** Inflates and checks one span. The memory of `stored` is gone afterwards. */
  inflate(request: Omit<InflateRequest, 'id'>): Promise<InflateAnswer> {
    const thread = this.leastBusy();
    const id = this.nextId++;
    return new Promise((resolve) => {
      thread.waiting.set(id, resolve);
      thread.worker.postMessage({ ...request, id } satisfies InflateRequest, [request.stored.buffer]);
    });
  }

  /** Ends the threads after what they are doing; what waits is not answered. */
  async close(): Promise<void> {
    await Promise.all(
      this.threads.splice(0).map(async ({ worker }) => {
        const ended = new Promise<void>((resolve) => worker.once('exit', () => resolve()));
        worker.removeAllListeners('message');
        worker.postMessage(STOP);
        await ended;
      }),
    );
  }

  private leastBusy(): Thread {
    const least = this.threads.reduce<Thread | undefined>((best, each) => {
      return best === undefined || each.waiting.size < best.waiting.size ? each : best;
    }, undefined);
    if (least !== undefined && (least.waiting.size === 0 || this.threads.length === this.count)) return least;
    const thread = this.start();
    this.threads.push(thread);
    return thread;
  }

  private start(): Thread {
    // What it works on lies outside its heap.
    const worker = new Worker(WORKER, { resourceLimits: { maxOldGenerationSizeMb: 64, maxYoungGenerationSizeMb: 4 } });
    const waiting: Thread['waiting'] = new Map();
    worker.on('message', (answer: InflateAnswer) => {
      const resolve = waiting.get(answer.id);
      waiting.delete(answer.id);
      resolve?.(answer);
    });
    const failed = (cause: unknown): void => {
      this.onFailure(new AppError('Internal', { op: 'inflate', subject: 'thread', what: 'it ended', cause }));
    };
    worker.on('error', failed);
    worker.unref();
    return { worker, waiting };
  }
}
