/** Measures directory trees off the event loop: few worker threads, a bounded queue, answers kept for a few seconds. */
import path from 'node:path';
import { Worker } from 'node:worker_threads';
import { LRUCache } from 'lru-cache';
import pLimit from 'p-limit';
import { AppError } from '../base/errors.ts';
import type { UsageAnswer } from './usage-worker.ts';

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

function walk(root: string, signal: AbortSignal): Promise<UsageAnswer> {
  return new Promise((resolve, reject) => {
    const worker = new Worker(WORKER, { workerData: root, resourceLimits: { maxOldGenerationSizeMb: 1024 } });
    const fail = (cause: unknown): void => {
      reject(
        new AppError('Internal', { op: 'measure', subject: root, what: cause instanceof Error ? cause.message : 'ended early', cause }),
      );
    };
    const onAbort = (): void => {
      void worker.terminate();
      reject(new AppError('Canceled', { op: 'measure', subject: root, what: 'given up', cause: signal.reason }));
    };
    signal.addEventListener('abort', onAbort, { once: true });
    worker.once('message', (answer: UsageAnswer) => resolve(answer));
    worker.once('error', fail);
    worker.once('exit', () => {
      signal.removeEventListener('abort', onAbort);
      fail(undefined);
    });
  });
}

export class UsageMeter {
  private readonly limit = pLimit(WORKERS);
  private readonly cache = new LRUCache<string, Promise<UsageAnswer>>({ max: CACHE_ENTRIES, ttl: CACHE_MS });

  /** The present size of a tree, walked now. Errors: ResourceExhausted (queue full), Canceled, Internal. */
  async measure(root: string, signal: AbortSignal): Promise<UsageAnswer> {
    if (this.limit.pendingCount >= MAX_QUEUE) {
      throw new AppError('ResourceExhausted', { op: 'measure', subject: root, what: `${MAX_QUEUE} measurements wait already` });
    }
    return this.limit(() => {
      signal.throwIfAborted();
      return walk(root, AbortSignal.any([signal, AbortSignal.timeout(WALK_DEADLINE_MS)]));
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
}
