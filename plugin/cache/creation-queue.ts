/**
 * Which caches are worked on: a fixed number at once, creations and updates before the filling of flash caches, the longest waiting first.
 * What fails for a passing reason is tried again; the rest is told. After a kill everything goes on from what is written down. Ours.
 */
import { AssertionError } from 'node:assert';
import type { Clock } from '../base/clock.ts';
import { AppError, describeError, isAppError } from '../base/errors.ts';
import type { Logger } from '../base/log.ts';
import { Build, type BuildParts } from './build.ts';
import { type CacheRecord, hasWork, isPinned, repositoryOf, targetOf } from './cache-record.ts';
import type { Change, NewEvent } from './catalogue.ts';
import type { Releaser } from './releaser.ts';

/** Attempts at a creation or update: a registry that restarts, a worker that is killed. */
export const MAX_ATTEMPTS = 5;
/** Content that served once is tried for again so long: a registry may be away for a night. */
const PATIENCE_US = 24 * 3_600_000_000;
/** Before the second and later attempts. */
const RETRY_MS = [1_000, 10_000, 60_000, 300_000] as const;
/** After a failure that could not even be written down (a full disk). */
const BROKEN_RETRY_MS = 60_000;

export interface QueueParts extends BuildParts {
  readonly releaser: Releaser;
  readonly clock: Clock;
  readonly logger: Logger;
  readonly concurrency: number;
  /** Of one attempt. */
  readonly deadlineMs: number;
}

interface Job {
  readonly controller: AbortController;
  readonly done: Promise<void>;
}

export class CreationQueue {
  private readonly parts: QueueParts;
  private readonly jobs = new Map<string, Job>();
  /** Caches that wait before their next attempt. */
  private readonly resting = new Map<string, AbortController>();
  private isStarted = false;

  constructor(parts: QueueParts) {
    this.parts = parts;
  }

  /** Builds under way. */
  get running(): number {
    return this.jobs.size;
  }

  /** Caches with work that is not under way. */
  get waiting(): number {
    return this.parts.catalogue.all().filter((record) => hasWork(record) && !this.jobs.has(record.id)).length;
  }

  isBusy(id: string): boolean {
    const record = this.parts.catalogue.find(id);
    return this.jobs.has(id) || (record !== undefined && hasWork(record));
  }

  start(): void {
    this.isStarted = true;
    this.pump();
  }

  /** Something may be to do. A cache that waits for its next attempt goes on waiting. */
  poke(): void {
    this.pump();
  }

  /** Ends the work on a cache; resolves when nothing of it runs. Whether it begins again is the catalogue's matter. */
  async abort(id: string): Promise<void> {
    this.resting.get(id)?.abort();
    const job = this.jobs.get(id);
    job?.controller.abort(new AppError('Canceled', { op: 'create', subject: id, what: 'the cache was deleted' }));
    await job?.done;
  }

  /** Ends all work; it goes on at the next start. */
  async stop(): Promise<void> {
    this.isStarted = false;
    for (const rest of this.resting.values()) rest.abort();
    const jobs = [...this.jobs.values()];
    for (const { controller } of jobs)
      controller.abort(new AppError('Canceled', { op: 'create', subject: 'image caches', what: 'the service ends' }));
    await Promise.all(jobs.map(({ done }) => done));
  }

  private pump(): void {
    if (!this.isStarted) return;
    while (this.jobs.size < this.parts.concurrency) {
      const next = this.next();
      if (next === undefined) return;
      const controller = new AbortController();
      const done = this.work(next.id, controller.signal).finally(() => {
        this.jobs.delete(next.id);
        this.pump();
      });
      this.jobs.set(next.id, { controller, done });
    }
  }

  private next(): CacheRecord | undefined {
    const ready = this.parts.catalogue
      .all()
      .filter((record) => hasWork(record) && !this.jobs.has(record.id) && !this.resting.has(record.id));
    const isFill = (record: CacheRecord): number => (record.status === 'Ready' ? 1 : 0);
    return ready.sort((a, b) => isFill(a) - isFill(b) || a.workSinceUs - b.workSinceUs || (a.id < b.id ? -1 : 1))[0];
  }

  private async work(id: string, signal: AbortSignal): Promise<void> {
    const { deadlineMs, clock } = this.parts;
    const deadline = AbortSignal.timeout(deadlineMs);
    const startedMs = clock.monotonicMs();
    try {
      await this.parts.releaser.idle(id);
      signal.throwIfAborted();
      await new Build(id, this.parts, AbortSignal.any([signal, deadline])).run();
      await this.parts.releaser.release(id);
    } catch (error) {
      // A broken invariant ends the process; the next one starts from what is durable.
      if (error instanceof AssertionError) throw error;
      if (signal.aborted) return;
      await this.failed(id, deadline.aborted ? this.isLate(id, error) : error, (clock.monotonicMs() - startedMs) / 1000);
    }
  }

  private async failed(id: string, error: unknown, elapsedS: number): Promise<void> {
    const { catalogue, secrets, logger } = this.parts;
    const record = catalogue.find(id);
    if (record === undefined) return;
    const said = secrets.scrub(record, `${describeError(error)}; after ${elapsedS.toFixed(1)} s${adviceFor(error, record)}`);
    logger.warn({ cache: id, reason: said }, 'work on an image cache failed');
    try {
      const delayMs = isPassing(error, record) ? this.retryDelay(record) : undefined;
      if (delayMs === undefined) await this.giveUp(record, said);
      else this.tryAgain(record, said, delayMs);
    } catch (cause) {
      if (cause instanceof AssertionError) throw cause;
      logger.error({ cache: id, reason: describeError(cause) }, 'the failure cannot be written down; the work is tried again');
      this.rest(id, BROKEN_RETRY_MS);
    }
  }

  /** Milliseconds until the next attempt; undefined: there is none. */
  private retryDelay(record: CacheRecord): number | undefined {
    const { catalogue } = this.parts;
    const isPatient = record.servedUs !== null && record.status !== 'Updating';
    const goesOn = isPatient ? catalogue.time.nowUs() - record.workSinceUs < PATIENCE_US : record.attempts + 1 < MAX_ATTEMPTS;
    return goesOn ? RETRY_MS[Math.min(record.attempts, RETRY_MS.length - 1)] : undefined;
  }

  private tryAgain(record: CacheRecord, said: string, delayMs: number): void {
    const message = `attempt ${record.attempts + 1}: ${said} (tried again in ${delayMs / 1000} s)`;
    this.parts.catalogue.change(record.id, { attempts: record.attempts + 1 }, [{ type: 'Warning', reason: 'Retrying', message }]);
    this.rest(record.id, delayMs);
  }

  /** What served before goes on serving; a new cache keeps nothing but its name, its events and its failure. */
  private async giveUp(record: CacheRecord, said: string): Promise<void> {
    const { catalogue, releaser } = this.parts;
    const isUpdate = record.status === 'Updating';
    const change: Change = isUpdate
      ? { status: 'UpdateFailed', failure: said, attempts: 0 }
      : { status: 'Failed', failure: said, attempts: 0, failedUs: catalogue.time.nowUs(), isWhole: false, credentials: null };
    const event: NewEvent = { type: 'Warning', reason: isUpdate ? 'UpdateFailed' : 'Failed', message: said };
    catalogue.change(record.id, change, [event]);
    await releaser.release(record.id);
  }

  private rest(id: string, delayMs: number): void {
    const controller = new AbortController();
    this.resting.set(id, controller);
    const end = (): void => {
      if (this.resting.get(id) === controller) this.resting.delete(id);
      this.pump();
    };
    this.parts.clock.sleep(delayMs, controller.signal).then(end, end);
  }

  private isLate(id: string, cause: unknown): AppError {
    const what = `not done within ${this.parts.deadlineMs / 1000} s (caches.creation_deadline)`;
    return new AppError('DeadlineExceeded', { op: 'create', subject: id, what, cause });
  }
}

/**
 * True when the same may succeed later. What a cache needs more of than it may have is no matter of time; credentials that were good a
 * moment ago are (a token that ended, a data plane that was replaced and has to be told them again).
 */
function isPassing(error: unknown, record: CacheRecord): boolean {
  if (isAppError(error, 'ResourceExhausted')) return error.details.neededBytes === undefined;
  if (isAppError(error, 'Unauthenticated')) return targetOf(record).every(isPinned);
  return isAppError(error, 'Unavailable', 'DeadlineExceeded', 'Canceled');
}

/** For people whose registry is far away (R114). */
function adviceFor(error: unknown, record: CacheRecord): string {
  if (!isAppError(error, 'Unavailable', 'DeadlineExceeded')) return '';
  const hosts = [...new Set(targetOf(record).map((image) => repositoryOf(image.reference).split('/')[0]))];
  return `; if ${hosts.join(', ')} is slow or far away, a mirror near this node helps`;
}
