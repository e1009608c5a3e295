/** Measures directory trees off the event loop: few lasting worker threads, a bounded queue, answers kept for a few seconds. */
import path from 'node:path';
import { Worker } from 'node:worker_threads';
import { LRUCache } from 'lru-cache';
import pLimit from 'p-limit';
import { AppError } from '../base/errors.ts';
import type { UsageAnswer, UsageMessage } from './usage-worker.ts';

const WORKER = path.join(import.meta.dirname, `usage-worker${path.extname(import.meta.filename)}`);

/** CRI asks for all snapshots every 10 s; a walk must not be started again within that time for each of several askers. */
const CACHE_MS = 5_000;
const CACHE_ENTRIES = 4096;

/** One walk keeps a disk busy; the second is for a Commit behind a long walk. */
const WORKERS = 2;

/** More waiting walks than a node has containers. */
const MAX_QUEUE = 4096;

/** A tree of 10 million files takes minutes; after this the walk is given up. */
const WALK_DEADLINE_MS = 10 * 60_000;

function startWorker(idle: Worker[]): Worker {
  const worker = new Worker(WORKER, { resourceLimits: { maxOldGenerationSizeMb: 1024 } });
  worker.once('exit', () => {
    const at = idle.indexOf(worker);
    if (at >= 0) idle.splice(at, 1);
  });
  return worker;
}

/** One walk in an idle worker, or a new one; the worker is idle again afterwards unless it had to be ended. */
function walk(root: string, idle: Worker[], signal: AbortSignal): Promise<UsageAnswer> {
  return new Promise((resolve, reject) => {
    const worker = idle.pop() ?? startWorker(idle);
    const settle = (act: () => void): void => {
      signal.removeEventListener('abort', onAbort);
      // Its own listeners alone: the thread has some that it lives by.
      worker.off('message', onMessage).off('error', onError).off('exit', onExit);
      act();
    };
    const fail = (what: string, cause?: unknown): void => reject(new AppError('Internal', { op: 'measure', subject: root, what, cause }));
    const onAbort = (): void =>
      settle(() => {
        void worker.terminate();
        reject(new AppError('Canceled', { op: 'measure', subject: root, what: 'given up', cause: signal.reason }));
      });
    const onMessage = (message: UsageMessage): void =>
      settle(() => {
        idle.push(worker);
        if ('answer' in message) resolve(message.answer);
        else fail(message.failure);
      });
    const onError = (cause: unknown): void => settle(() => fail('the worker failed', cause));
    const onExit = (): void => settle(() => fail('the worker ended early'));
    signal.addEventListener('abort', onAbort, { once: true });
    worker.on('message', onMessage).on('error', onError).on('exit', onExit);
    worker.postMessage(root);
  });
}

export class UsageMeter implements AsyncDisposable {
  private readonly limit = pLimit(WORKERS);
  /** Kept, since starting one takes longer than most walks. */
  private readonly idle: Worker[] = [];
  private readonly cache = new LRUCache<string, Promise<UsageAnswer>>({ max: CACHE_ENTRIES, ttl: CACHE_MS });

  /** The present size of a tree, walked now. Errors: ResourceExhausted (queue full), Canceled, Internal. */
  async measure(root: string, signal: AbortSignal): Promise<UsageAnswer> {
    if (this.limit.pendingCount >= MAX_QUEUE) {
      throw new AppError('ResourceExhausted', { op: 'measure', subject: root, what: `${MAX_QUEUE} measurements wait already` });
    }
    return this.limit(() => {
      signal.throwIfAborted();
      return walk(root, this.idle, AbortSignal.any([signal, AbortSignal.timeout(WALK_DEADLINE_MS)]));
    });
  }

  /** As {@link measure}, or what it was a few seconds ago. */
  recent(root: string): Promise<UsageAnswer> {
    const cached = this.cache.get(root);
    if (cached !== undefined) return cached;
    const fresh = this.measure(root, AbortSignal.timeout(WALK_DEADLINE_MS));
    this.cache.set(root, fresh);
    fresh.catch(() => this.cache.delete(root));
    return fresh;
  }

  /** Ends idle threads. Call when nobody measures any more. */
  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all(this.idle.splice(0).map((worker) => worker.terminate()));
  }
}
